"""The service as its users meet it: on a Ray of its own, with everything in its place, and then without some of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from standardwebhooks import Webhook

from serve.store import Store, Task
from tests.jobs.command import wait_until
from tests.serve.standing.live import EXPRESS, INGRESS, RUNNER, SECRET, Live, write_dancer
from tests.serve.web import WebServer

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def live(standing: Live) -> Live:
    """The service, up."""
    standing.up()
    return standing


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[httpx2.Client]:
    with live.client() as found:
        yield found


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four segments; about a second of work."""
    return write_dancer(tmp_path_factory.mktemp("clips") / "short.mp4")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four segments; long enough to be interrupted, and too long to be answered at once."""
    return write_dancer(tmp_path_factory.mktemp("clips") / "long.mp4", seconds=12)


@pytest.fixture(scope="module")
def made(live: Live, short: Path, long: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bytes]:
    """What a lane in this process makes of them."""
    return {clip: live.expected(clip, tmp_path_factory.mktemp("expected")) for clip in (short, long)}


@contextmanager
def held_back(pid: int) -> Iterator[None]:
    """A runner gets on at a tenth of its speed, to its end if that comes first."""
    over = threading.Event()

    def hold_back() -> None:
        with suppress(ProcessLookupError):
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.18)
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.02)

    holding = threading.Thread(target=hold_back)
    holding.start()
    try:
        yield
    finally:
        over.set()
        holding.join()


@contextmanager
def at_work(live: Live, client: httpx2.Client, clip: Path, segments: int = 4) -> Iterator[tuple[str, int]]:
    """A task in the midst of its segments, and the process id of its runner, which is held back: nothing else decides
    how far it gets."""
    task_id = live.submit(client, clip)
    runner = wait_until(lambda: live.worker(task_id), "a runner")
    with held_back(runner):
        wait_until(lambda: len(live.segments(task_id)) >= segments, "segments")
        yield task_id, runner


def result(client: httpx2.Client, task_id: str) -> bytes:
    found = client.get(f"/v1/tasks/{task_id}/result")
    assert found.status_code == 200, found.text
    return found.content


def folder_of(live: Live, task_id: str) -> Path:
    return live.data / "tasks" / task_id


def test_upload_is_followed_to_a_result_that_a_batch_would_have_made(
    live: Live, client: httpx2.Client, short: Path, made: dict[Path, bytes]
) -> None:
    task_id = live.submit(client, short)
    events = []
    with client.stream("GET", f"/v1/tasks/{task_id}/events") as stream:
        lines = iter(stream.iter_lines())
        events = [
            (line.removeprefix("event: "), json.loads(next(lines).removeprefix("data: ")))
            for line in lines
            if line.startswith("event: ")
        ]
    states = [data["state"] for kind, data in events if kind == "state"]
    assert states == ["queued", "running", "done"]
    assert any(kind == "progress" for kind, _ in events)
    task = live.finished(client, task_id)
    assert (task["state"], task["attempts"], task["result"]["frames"]) == ("done", 1, 24)
    assert task["progress"]["stages"] == {"fetching": 1, "planning": 1, "running": 1, "assembling": 1}
    assert result(client, task_id) == made[short]
    wait_until(lambda: [each.name for each in folder_of(live, task_id).iterdir()] == ["result"], "input and work to go")


def test_clip_is_answered_at_once_or_with_its_task_or_refused_for_its_length(
    live: Live, client: httpx2.Client, short: Path, long: Path, made: dict[Path, bytes]
) -> None:
    files = {"file": (short.name, short.read_bytes())}
    at_once = client.post("/v1/restage", files=files, headers={"Prefer": "wait=60"})
    assert at_once.status_code == 200, at_once.text
    assert at_once.headers["preference-applied"] == "wait=60"
    assert at_once.content == made[short]
    later = client.post("/v1/restage", files=files, headers={"Prefer": "respond-async"})
    assert later.status_code == 202
    assert live.finished(client, later.json()["id"])["state"] == "done"
    refused = client.post("/v1/restage", files={"file": (long.name, long.read_bytes())})
    assert refused.status_code == 413
    assert "10 s" in refused.json()["detail"]
    assert "12.0 s" in refused.json()["detail"]


def test_webhook_tells_of_the_end_once_and_its_signature_verifies(
    live: Live, client: httpx2.Client, short: Path, receiver: WebServer
) -> None:
    task_id = live.submit(client, short, webhook=receiver.url)
    task = live.finished(client, task_id)
    (seen,) = wait_until(lambda: [seen for seen in receiver.seen if task_id.encode() in seen.body], "the webhook")
    told = Webhook(SECRET).verify(seen.body, seen.headers)
    assert told["type"] == "task.done"
    assert told["data"]["result"]["sha256"] == task["result"]["sha256"]
    time.sleep(2)  # its sender looks twice a second for what is owed
    ids = [seen.headers["webhook-id"] for seen in receiver.seen]
    assert [each for each in ids if each.startswith(task_id)] == [f"{task_id}.0"]


def test_running_task_is_cancelled_within_seconds_and_nothing_of_it_is_left(
    live: Live, client: httpx2.Client, long: Path
) -> None:
    with at_work(live, client, long) as (task_id, _):
        asked = time.monotonic()
        assert client.delete(f"/v1/tasks/{task_id}").status_code == 202
        task = live.finished(client, task_id)
    assert time.monotonic() - asked < 5
    assert task["state"] == "cancelled"
    wait_until(lambda: not folder_of(live, task_id).exists(), "its folder to go", 5)
    assert client.get(f"/v1/tasks/{task_id}/result").status_code == 409


def test_killed_runners_task_is_finished_by_another_one_behind_its_last_segment(
    live: Live, client: httpx2.Client, long: Path, made: dict[Path, bytes]
) -> None:
    with at_work(live, client, long) as (task_id, killed):
        os.kill(killed, signal.SIGKILL)
    before = live.segments(task_id)
    wait_until(lambda: live.worker(task_id) not in (None, killed), "another runner")
    wait_until(lambda: len(live.segments(task_id)) > len(before), "its first segment")
    after = live.segments(task_id)
    assert {index: after[index] for index in before} == before
    task = live.finished(client, task_id)
    assert (task["state"], task["attempts"]) == ("done", 2)
    assert result(client, task_id) == made[long]


def test_no_task_is_lost_when_the_service_is_deployed_anew_while_requests_come(
    live: Live, client: httpx2.Client, short: Path, made: dict[Path, bytes]
) -> None:
    before = {each.pid for name in (RUNNER, EXPRESS, INGRESS) for each in live.processes(name)}
    deployed = threading.Event()
    accepted: list[str] = []

    def submit() -> None:
        while not deployed.is_set() or len(accepted) < 3:
            accepted.append(live.insist(client, short))
            time.sleep(2.5)  # enough requests come; each takes a second of work

    submitting = threading.Thread(target=submit)
    submitting.start()
    try:
        live.service["keep_days"] = 8
        assert "was replaced" in live.up()
    finally:
        deployed.set()
        submitting.join()
    assert before.isdisjoint(each.pid for name in (RUNNER, EXPRESS, INGRESS) for each in live.processes(name))
    assert len(set(accepted)) == len(accepted)
    for task_id in accepted:
        assert live.finished(client, task_id)["state"] == "done"
        assert result(client, task_id) == made[short]


async def task_in(live: Live, task_id: str) -> Task:
    """A task as the store has it, while nothing answers."""
    async with Store(live.database) as store:
        found = await store.get(task_id, None)
    assert found is not None
    return found


def test_down_gives_tasks_back_and_up_goes_on_behind_their_last_segments(
    live: Live, client: httpx2.Client, long: Path, made: dict[Path, bytes]
) -> None:
    with at_work(live, client, long) as (task_id, _):
        live.down()
    task, before = asyncio.run(task_in(live, task_id)), live.segments(task_id)
    assert (task.state, task.attempts, task.finished) == ("queued", 0, None)
    assert len(before) >= 4

    def finish() -> dict[str, Any]:
        live.up()
        return live.finished(client, task_id)

    with ThreadPoolExecutor(1) as executor:
        finishing = executor.submit(finish)
        while not finishing.done():
            seen = live.segments(task_id)
            assert {index: seen[index] for index in seen.keys() & before.keys()}.items() <= before.items()
            time.sleep(0.05)  # leaves the cores to the service
        ended = finishing.result()
    assert (ended["state"], ended["attempts"]) == ("done", 1)
    assert result(client, task_id) == made[long]
