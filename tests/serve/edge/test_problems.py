"""Every failure is a problem with an id, and tells nothing of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import pytest
from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from cluster.errors import ClusterError, JobError, MediaError, RoomError, TroupeError, UsageError, WeightsError
from serve.edge.problems import MEDIA_TYPE, FieldProblem, Problem, busy, install, problem_of, responses, without_paths
from serve.edge.request_id import request_id
from serve.logs import JsonLines
from serve.store.errors import StoreBusyError, StoreError
from serve.transfer.addresses import RefusedURLError
from serve.transfer.fetch import FetchError
from serve.transfer.spool import SpoolError, TooLargeError

SECRET = "/srv/secret/data"


class Body(BaseModel):
    upscale: int
    inner: dict[str, int] = {}


def app() -> FastAPI:
    app = FastAPI()
    install(app)

    @app.get("/own")
    async def own() -> None:
        raise busy("rate_limit", "slowly", 1.2)

    @app.get("/troupe")
    async def troupe() -> None:
        raise MediaError(f"{SECRET}/input-0", f"cannot read {SECRET}/input-0: broken", place=SECRET)

    @app.get("/crash")
    async def crash() -> None:
        raise RuntimeError(f"{SECRET} crashed")

    @app.get("/http")
    async def http() -> None:
        raise HTTPException(403, "not you", headers={"X-Why": "because"})

    @app.get("/late")
    async def late() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"begin"
            raise RuntimeError(SECRET)

        return StreamingResponse(body())

    @app.post("/body", responses=responses(401, 404, 429))
    async def body(body: Body, n: Annotated[int, Query()] = 0) -> dict[str, str]:
        del body, n
        return {"id": request_id.get()}

    return app


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app()) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "status", "code", "detail"),
    [
        ("/own", 429, "rate_limit", "slowly"),
        ("/troupe", 422, "media_refused", "input-0: cannot read input-0: broken"),
        ("/crash", 500, "internal", "something went wrong"),
        ("/http", 403, "http_403", "not you"),
        ("/none", 404, "not_found", "nothing at this path"),
        ("/body", 405, "method_not_allowed", "GET is not allowed"),
    ],
)
def test_failure_is_a_problem_with_an_id(client: TestClient, path: str, status: int, code: str, detail: str) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == MEDIA_TYPE
    body = answer.json()
    assert (body["status"], body["code"], body["type"]) == (status, code, "about:blank")
    assert detail in body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"] != ""
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_headers_of_a_problem_are_sent(client: TestClient) -> None:
    assert client.get("/own").headers["retry-after"] == "2"
    assert client.get("/http").headers["x-why"] == "because"
    assert client.get("/body").headers["allow"] == "POST"


def test_unexpected_error_is_in_the_log_under_the_id(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonLines())
    answer = client.get("/crash", headers={"x-request-id": "abc.1"})
    assert answer.json()["request_id"] == "abc.1"
    (line,) = [line for line in map(json.loads, caplog.text.splitlines()) if line["logger"] == "serve.edge.problems"]
    assert line["request_id"] == "abc.1"
    assert "crashed" in line["trace"]


def test_failure_after_the_answer_began_breaks_it_off(client: TestClient) -> None:
    with pytest.raises(RuntimeError):
        client.get("/late")


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", "ä", "<script>"])
def test_malformed_request_id_is_replaced(client: TestClient, given: str) -> None:
    found = client.get("/none", headers={"x-request-id": given.encode()}).headers["x-request-id"]
    assert len(found) == 32
    assert found != given


def test_id_is_known_inside_the_request_only(client: TestClient) -> None:
    answer = client.post("/body", json={"upscale": 1}, headers={"x-request-id": "mine"})
    assert answer.json() == {"id": "mine"}
    assert request_id.get() == ""


def test_invalid_request_says_where_and_repeats_nothing(client: TestClient) -> None:
    answer = client.post("/body?n=x", json={"upscale": "S3CRET", "inner": {"a/b~": "S3CRET"}})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert {(one["where"], one["pointer"]) for one in answer.json()["errors"]} == {
        ("query", "/n"),
        ("body", "/upscale"),
        ("body", "/inner/a~1b~0"),
    }
    assert "S3CRET" not in answer.text
    for content, code in ((b"{", "invalid"), (b"", "invalid"), (b"[1", "invalid"), (b"\xff", "bad_request")):
        answer = client.post("/body", content=content, headers={"content-type": "application/json"})
        assert answer.json()["code"] == code


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RefusedURLError("u", "r"), 422, "url_refused"),
        (FetchError("u", "r"), 422, "url_failed"),
        (TooLargeError("u", "r"), 413, "too_large"),
        (SpoolError("u", "r"), 507, "storage"),
        (MediaError("u", "r"), 422, "media_refused"),
        (UsageError("u", "r"), 400, "bad_request"),
        (WeightsError("u", "r"), 422, "weights_missing"),
        (RoomError("u", "r", ["a table"]), 503, "no_room"),
        (ClusterError("u", "r"), 503, "unavailable"),
        (JobError("u", "r"), 500, "failed"),
        (TroupeError("u", "r"), 500, "failed"),
        (ValueError("r"), 500, "internal"),
    ],
)
def test_each_error_has_its_status_and_code(error: Exception, status: int, code: str) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.code) == (status, code)
    assert ("Retry-After" in problem.headers) == (status == 503)
    assert "\n" not in problem.detail


def test_damage_that_shows_when_a_segment_is_played_is_the_file_s_fault() -> None:
    error = JobError("a.mp4", "frame 1: is damaged", place="segment 0")
    error.__cause__ = MediaError("a.mp4", "is damaged", place="frame 1")
    problem = problem_of(error)
    assert (problem.status, problem.code) == (422, "media_refused")
    assert problem.detail == "a.mp4: segment 0: frame 1: is damaged"


def test_error_of_the_database_tells_nothing_of_it() -> None:
    secret = StoreError("database", "mysql+aiomysql://user:pw@db.internal/troupe: (2003, \"no connection to 'db'\")")
    problem = problem_of(secret)
    assert (problem.status, problem.code, problem.headers) == (503, "store", {"Retry-After": "5"})
    assert "db" not in problem.detail
    busy_one = problem_of(StoreBusyError("database", "is asked for more than it answers"))
    assert (busy_one.status, busy_one.detail) == (429, "database: is asked for more than it answers")


def test_body_of_a_problem_can_be_kept_with_a_task() -> None:
    problem = Problem(
        422, "x", "y", errors=[FieldProblem(where="body", pointer="/a", detail="d")], extra={"message": "m"}
    )
    body = json.loads(json.dumps(problem.body()))
    assert body == {
        "type": "about:blank",
        "title": "Unprocessable Entity",
        "status": 422,
        "detail": "y",
        "code": "x",
        "errors": [{"where": "body", "pointer": "/a", "detail": "d"}],
        "message": "m",
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot write /srv/a/b.mp4: no", "cannot write b.mp4: no"),
        ("'/srv/a/b'", "'b'"),
        ("in (/srv/a b)", "in (a b)"),
        ("~/x/y", "y"),
        ("https://host/a/b.mp4 answers", "https://host/a/b.mp4 answers"),
        ("1/2 and a/b", "1/2 and a/b"),
        ("/srv/", ""),
        ("cannot open:/srv/a/b.mp4", "cannot open:b.mp4"),
        ("read file:/srv/a/b.mp4", "read b.mp4"),
        ("read file:///srv/a/b.mp4", "read b.mp4"),
        ("file://localhost/srv/b.mp4", "b.mp4"),
        ("//srv/a/b.mp4", "b.mp4"),
        ("sqlite:////srv/data/troupe.db is locked", "sqlite:troupe.db is locked"),
    ],
)
def test_paths_are_cut_to_their_last_part(text: str, told: str) -> None:
    assert without_paths(text) == told


@pytest.mark.parametrize(
    ("remedy", "told"),
    [
        ("choose another --matte, or --max-input 720", "choose another matte, or max_input 720"),
        ("3 damaged frames (--allow-damaged)", "3 damaged frames (allow_damaged)"),
        ("run `troupe weights fetch x --accept-licence y`", "run `troupe weights fetch x --accept-licence y`"),
    ],
)
def test_options_of_the_command_line_are_told_as_fields(remedy: str, told: str) -> None:
    assert problem_of(MediaError("a.mp4", "is wrong", remedy=remedy)).detail == f"a.mp4: is wrong; {told}"


def test_openapi_describes_problems_and_nothing_of_fastapis_own(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    answers = document["paths"]["/body"]["post"]["responses"]
    assert set(answers) == {"200", "401", "404", "422", "429"}
    for status in ("401", "404", "422", "429"):
        assert set(answers[status]["content"]) == {MEDIA_TYPE}
    assert "Retry-After" in answers["429"]["headers"]
    assert "HTTPValidationError" not in json.dumps(document)
    schema = document["components"]["schemas"]["ProblemDetails"]
    assert all("description" in field for field in schema["properties"].values())
    assert "FieldProblem" in document["components"]["schemas"]


def test_everything_but_the_ray_part_imports_without_ray() -> None:
    modules = (
        "edge.auth",
        "edge.problems",
        "folders",
        "store",
        "transfer.fetch",
        "transfer.uploads",
        "transfer.webhooks",
    )
    imports = ", ".join(f"serve.{name}" for name in modules)
    code = f"import {imports}, sys; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
