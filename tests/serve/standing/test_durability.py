"""Whatever dies, and when: each task that was accepted is done, once, and its owner is told of one end."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serve.store import Event, Store
from tests.conftest import SoakCount
from tests.jobs.command import wait_until
from tests.serve.standing.live import CONTROLLER, GCS, INGRESS, RAYLET, RUNNER, Live, write_dancer
from tests.serve.store.conftest import Servers
from tests.serve.web import WebServer

#: What is killed, in this proportion; what Ray consists of is killed with all of it, one after the other.
VICTIMS = (RUNNER, INGRESS, "all of Ray", CONTROLLER, RUNNER)
RAYS = ("everything", RAYLET, GCS)
#: Tasks, reduced and in full, and kills in full.
REDUCED, FULL, KILLS = 20, 200, 30
#: Reduced counts of kills: each victim with SQLite, a runner with the others. SQLite is the last: the service goes on
#: with it.
REDUCED_KILLS = {"postgresql": 1, "mariadb": 1, "sqlite": 4}
CLIPS = 4
#: Tasks that are submitted ahead of those that are done.
BACKLOG = 8
_TIDY_SECONDS = 90

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(5400)]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Real ones, started when a test asks for them."""
    found = Servers(tmp_path_factory.mktemp("databases"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def made(standing: Live, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bytes]:
    """Small clips, and what a lane in this process makes of each."""
    folder = tmp_path_factory.mktemp("clips")
    sources = [write_dancer(folder / f"{i}.mp4", seconds=1, first=10 * i) for i in range(CLIPS)]
    found = {clip: standing.expected(clip, folder / "expected") for clip in sources}
    assert len(set(found.values())) == CLIPS
    return found


@dataclass
class Clients:
    """One client's tasks.

    Attributes:
        clips: of each accepted task.
        error: what ended its thread.
    """

    live: Live
    receiver: WebServer
    count: int
    dice: random.Random
    sources: list[Path]
    clips: dict[str, Path] = field(default_factory=dict)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._seen_before = len(self.receiver.seen)

    def ends(self) -> Counter[str]:
        """How often the receiver was told, by webhook id."""
        return Counter(seen.headers["webhook-id"] for seen in self.receiver.seen[self._seen_before :])

    def submit(self) -> None:
        """All of them, never many more than are done."""
        try:
            with self.live.client() as client:
                while len(self.clips) < self.count:
                    if len(self.clips) - len(self.ends()) >= BACKLOG:
                        time.sleep(0.1)
                        continue
                    clip = self.dice.choice(self.sources)
                    self.clips[self.live.insist(client, clip, webhook=self.receiver.url)] = clip
        except BaseException as error:
            self.error = error


@dataclass
class Killer:
    """Kills at moments and among processes that its seed decides."""

    live: Live
    dice: random.Random
    killed: list[str] = field(default_factory=list)

    def harm(self, clients: Clients, kills: int) -> None:
        """So many kills, spread over the time in which the tasks are done."""
        rays = 0
        for number in range(kills):
            victim = VICTIMS[number % len(VICTIMS)]
            moment = int(clients.count * (number + self.dice.random()) / (kills + 1))
            wait_until(
                lambda moment=moment: clients.error or (clients.clips and len(clients.ends()) >= moment),
                f"{moment} ends after {self.killed}; there are {len(clients.ends())}",
                600,
            )
            assert clients.error is None, clients.error
            time.sleep(self.dice.uniform(0, 0.5))  # a task takes about as long
            if victim == "all of Ray":
                self._kill_ray(RAYS[rays % len(RAYS)])
                rays += 1
            elif self.live.kill(victim, self.dice) is not None:
                self.killed.append(victim.rpartition(":")[2])

    def _kill_ray(self, part: str) -> None:
        """All of it at once, or a part without which the rest ends."""
        self.killed.append(f"Ray by its {part}" if part != "everything" else "Ray")
        if part == "everything":
            self.live.kill_all()
        else:
            self.live.kill(part)
        self.live.await_gone(120)
        self.live.revive()


@pytest.mark.parametrize("kind", REDUCED_KILLS)
def test_every_accepted_task_is_done_once_whatever_is_killed(
    kind: str,
    servers: Servers,
    standing: Live,
    made: dict[Path, bytes],
    receiver: WebServer,
    soak_count: SoakCount,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    live, count = standing, soak_count(REDUCED, FULL)
    # The only runner is the one that is at work: with few kills each should hit.
    runners = 2 if count == FULL else 1
    live.service |= {"data": str(tmp_path / "data"), "database": servers.fresh(kind), "runners": runners}
    live.revive()
    begun = time.monotonic()
    clients = Clients(live, receiver, count, random.Random(3), list(made))
    killer = Killer(live, random.Random(5))
    submitting = threading.Thread(target=clients.submit, daemon=True)
    submitting.start()
    killer.harm(clients, KILLS if count == FULL else REDUCED_KILLS[kind])
    submitting.join(600)
    assert clients.error is None, clients.error
    assert len(clients.clips) == count, f"after {killer.killed}"
    attempts = check_done(live, clients, made)
    seconds = time.monotonic() - begun
    wait_until(lambda: len(clients.ends()) >= count, "the last webhooks", 120)
    wait_until(lambda: not leftovers(live, clients), f"{leftovers(live, clients)} to be tidied", _TIDY_SECONDS)
    check_once(live.database, clients)
    strays = {each.name for each in (live.data / "tasks").iterdir()} - clients.clips.keys()
    assert len(strays) <= killer.killed.count("Ingress") + sum(each.startswith("Ray") for each in killer.killed)
    repeats = clients.ends().total() - count
    with capsys.disabled():
        print(
            f"\n{kind}: {count} tasks in {seconds:.0f} s, killed {dict(Counter(killer.killed))}; attempts"
            f" {dict(sorted(attempts.items()))}, {repeats} webhooks repeated, {len(strays)} uploads never accepted"
        )


def check_done(live: Live, clients: Clients, expected: dict[Path, bytes]) -> Counter[int]:
    """All are done, with the right bytes, and there are no others; how many took how many attempts."""
    attempts: Counter[int] = Counter()
    with live.client() as client:
        for task_id, clip in clients.clips.items():
            task = live.finished(client, task_id)
            assert task["state"] == "done", json.dumps(task)
            found = client.get(f"/v1/tasks/{task_id}/result")
            assert found.content == expected[clip], f"{task_id} of {clip.name}: {found.status_code}, other bytes"
            attempts[task["attempts"]] += 1
        page = client.get("/v1/tasks?limit=500").json()
        assert {task["id"] for task in page["tasks"]} == clients.clips.keys()
    return attempts


def leftovers(live: Live, clients: Clients) -> list[str]:
    """What is there of done tasks beside their results."""
    tasks = live.data / "tasks"
    return [
        f"{task_id}/{each.name}"
        for task_id in clients.clips
        for each in (tasks / task_id).iterdir()
        if each.name != "result"
    ]


def check_once(url: str, clients: Clients) -> None:
    """Each task ended once, and its end was told under one id."""

    async def events() -> dict[str, tuple[Event, ...]]:
        async with Store(url) as store:
            return {task_id: await store.events_since(task_id) for task_id in clients.clips}

    for task_id, found in asyncio.run(events()).items():
        assert sum(event.data.get("state") == "done" for event in found) == 1, task_id
    assert clients.ends().keys() == {f"{task_id}.0" for task_id in clients.clips}
