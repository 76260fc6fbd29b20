"""A clip that somebody waits for: first in the queue while they do, and answered with what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serve.payload import ON_DEMAND
from serve.routes import restaging
from serve.store import TaskState
from tests.serve.service import MADE, Service, service

FORM = {"file": ("clip.mp4", b"a clip", "video/mp4")}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(restaging, "_check_short", lambda *_: None)
    with service(tmp_path, on_demand_wait_s=0.1, on_demand_at_once=1) as running:
        yield running


def restaged(here: Service, **headers: str) -> Any:
    return here.client.post("/v1/restage", files=FORM, headers={"Idempotency-Key": "one", **headers})


@pytest.mark.parametrize(("prefer", "priority"), [("", ON_DEMAND), ("respond-async", 0), ("wait=0", 0)])
def test_only_a_clip_that_is_waited_for_goes_first(here: Service, prefer: str, priority: int) -> None:
    assert restaged(here, Prefer=prefer).status_code == 202
    assert here.claim().task.priority == priority


def test_failure_that_may_pass_says_when_to_try_again(here: Service) -> None:
    restaged(here)
    error = {"status": 503, "code": "unavailable", "detail": "pin restage: is not deployed"}
    here.run(here.desk.store.finish, here.claim(), TaskState.FAILED, error=error)
    answer = restaged(here)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0


def test_result_is_sent_whatever_the_client_says_that_it_has(here: Service) -> None:
    restaged(here)
    here.finish()
    tag = restaged(here).headers["etag"]
    answer = restaged(here, **{"If-None-Match": tag, "Range": "bytes=0-9"})
    assert (answer.status_code, answer.content) == (200, MADE)


def test_clip_that_was_accepted_is_not_refused_for_want_of_a_place_to_wait(
    here: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as others:
        monkeypatch.setattr(
            restaging, "_check_short", lambda *_: others.enter_context(here.desk.on_demand.taken("another"))
        )
        assert restaged(here).status_code == 202
        assert restaged(here).json()["code"] == "busy", "where it is known before, nothing is sent in vain"
