"""So many at once, and nobody alone has all the places."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.api import _AtMost
from serve.edge.admission import Places
from serve.edge.problems import Problem, install


def refusal(places: Places, owner: str) -> Problem:
    with pytest.raises(Problem) as refused, places.taken(owner):
        pass
    assert (refused.value.status, refused.value.code) == (429, "busy")
    return refused.value


def test_last_free_place_is_for_an_owner_who_holds_none() -> None:
    places = Places(3, "busy", "requests are being answered", shared=True)
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(places.taken("greedy"))
        refusal(places, "greedy")
        held.enter_context(places.taken("other"))
        refusal(places, "third")
    with places.taken("greedy"):
        pass


@pytest.mark.parametrize(("most", "shared"), [(3, False), (1, True)])
def test_owner_who_is_alone_has_all_places_and_one_place_is_for_anybody(most: int, shared: bool) -> None:
    places = Places(most, "busy", "requests are being answered", shared=shared)
    with ExitStack() as held:
        for _ in range(most):
            held.enter_context(places.taken("local"))
        refusal(places, "local")


def test_crowd_is_told_to_come_again_the_later_the_larger_it_is() -> None:
    places = Places(2, "busy", "requests are being answered")
    with places.taken("a"):
        with places.taken("b"):
            waits = [int(refusal(places, "c").headers["Retry-After"]) for _ in range(100)]
        assert (waits[:5], waits[-1]) == ([2, 3, 4, 5, 6], 60)
        with places.taken("b"):
            assert refusal(places, "c").headers["Retry-After"] == "2", "somebody came in meanwhile"


def test_request_too_many_is_answered_with_a_problem() -> None:
    app = FastAPI()
    app.add_middleware(_AtMost, most=1)
    install(app)

    @app.get("/")
    def another() -> Any:
        return TestClient(app).get("/").json()

    told = TestClient(app).get("/").json()
    assert (told["status"], told["code"]) == (429, "busy")
    assert told["request_id"]
