"""Whether it lives and can work is told at once, however many ask, and whatever hangs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import ClusterError
from serve import ingress
from serve.ingress import Applications, Ingress
from serve.routes import health
from serve.routes.health import Readiness
from serve.store import Store, StoreError
from tests.jobs.command import wait_until
from tests.serve.service import Service, service, settings


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path, ready={"pin restage": "not deployed"}) as found:
        yield found


def test_readiness_says_what_is_missing(here: Service) -> None:
    assert here.client.get("/healthz").json()["status"] == "ok"
    answer = here.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {"store": "ok", "disk": "ok", "pin restage": "not deployed"}


def test_readiness_is_looked_at_once_however_many_ask_and_tells_no_internals(
    here: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    async def ping(store: Store) -> None:
        looks.append(store)
        raise StoreError("mysql://troupe@10.0.0.5/troupe", "(2003, \"Can't connect to '10.0.0.5'\")")

    monkeypatch.setattr(Store, "ping", ping)
    monkeypatch.setattr(health, "_FRESH_SECONDS", 1000.0)
    for _ in range(5):
        assert here.client.get("/readyz").json()["checks"]["store"] == "does not answer"
    assert len(looks) == 1


def test_readiness_answers_though_what_it_looks_at_hangs(here: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    over, looks = threading.Event(), []

    def ready() -> dict[str, str]:
        looks.append(here)
        over.wait(20)
        return {}

    monkeypatch.setattr(health, "_LOOK_SECONDS", 0.05)
    readiness = Readiness(replace(here.desk, ready=ready))
    try:
        assert [here.run(readiness.checks) for _ in range(3)] == [{"service": "does not answer"}] * 3
        assert len(looks) <= 1
    finally:
        over.set()


def test_controller_that_hangs_takes_one_thread_and_is_asked_again_when_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over, asked = threading.Event(), []

    def status() -> Any:
        asked.append(pins)
        over.wait(20)
        return SimpleNamespace(applications={"restage": SimpleNamespace(status="RUNNING")})

    monkeypatch.setattr(ingress.ray_serve, "status", status)
    monkeypatch.setattr(ingress, "_SERVE_SECONDS", 0.05)
    pins = Applications(["restage", "other"])
    try:
        assert [set(pins.states().values()) for _ in range(3)] == [{"unknown: TimeoutError"}] * 3
        assert len(asked) == 1
    finally:
        over.set()
    monkeypatch.setattr(ingress, "_SERVE_SECONDS", 20)
    assert pins.states() == {"pin restage": "ok", "pin other": "not deployed"}


def test_ingress_whose_loop_is_stuck_is_not_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "die_with_parent", lambda: None)
    monkeypatch.setattr(ingress, "log_as_json", lambda: None)
    monkeypatch.setattr(ingress, "_STUCK_SECONDS", 0.0)
    monkeypatch.setattr(ingress, "allow_files", lambda wanted: wanted)
    with socket.create_server(("127.0.0.1", 0)) as free:
        http = {"port": free.getsockname()[1]}
    running, over = Ingress({**settings(tmp_path).model_dump(mode="json"), "http": http}), threading.Event()
    try:
        assert running._loop is not None
        running._loop.call_soon_threadsafe(over.wait, 20)
        running.check_health()
        with pytest.raises(ClusterError, match="has answered nothing"):
            running.check_health()
        over.set()
        wait_until(lambda: running._asked is None, "its sign of life")
        running.check_health()
    finally:
        over.set()
        running.__del__()
