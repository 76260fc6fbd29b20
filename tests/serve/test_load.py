"""A crowd at the front desk: everybody is served or told to come again, nothing accepted is lost, memory is bounded."""

from __future__ import annotations

import asyncio
import random
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from serve.store import Store
from tests.conftest import SoakCount
from tests.jobs.command import ROOT
from tests.serve.service import MADE

BODY = b"a video as small as one can be" * 100
#: What one client may cost: uvicorn stops reading a connection when so much of it waits. Three thousand of them, whose
#: requests are small, were measured at 29 KiB each.
KIB_A_CLIENT = 64
#: An upload being received (`serve.transfer.uploads`), the process before the first request apart.
KIB_AN_UPLOAD, UPLOADS = 3 << 10, 4
#: What is not counted by requests: threads' stacks that are touched, SQLite's caches, pages that malloc keeps.
KIB_BESIDE = 64 << 10
_PATIENCE_SECONDS = 1500

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


@dataclass
class Crowd:
    """Clients of one server, and what they were answered.

    Attributes:
        base: the server.
        statuses: how often each status was answered, by what was asked.
        slowest: seconds of the longest answer, by what was asked.
        done: tasks seen to be done, by how many clients.
    """

    base: str
    session: aiohttp.ClientSession
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    looking: int = 0
    most_looking: int = 0

    async def submit(self, number: int) -> str:
        """Sends one task until it is accepted, as a client of good manners does; its id."""
        headers = {"Idempotency-Key": f"load-{number}", "Content-Type": "video/mp4"}
        while True:
            begun = time.monotonic()
            async with self.session.post(f"{self.base}/v1/tasks?preset=draft", data=BODY, headers=headers) as answer:
                told = await answer.json()
                self._note("submit", answer.status, begun, told)
                if answer.status == 202:
                    return str(told["id"])
                await asyncio.sleep(int(answer.headers["Retry-After"]) * random.uniform(0.5, 1.5))

    async def follow(self, task_id: str) -> None:
        """Looks again and again until the task is done."""
        self.looking += 1
        self.most_looking = max(self.most_looking, self.looking)
        while True:
            begun = time.monotonic()
            async with self.session.get(f"{self.base}/v1/tasks/{task_id}") as answer:
                told = await answer.json()
                self._note("look", answer.status, begun, told)
                if answer.status == 200 and told["state"] == "done":
                    break
                await asyncio.sleep(int(answer.headers["Retry-After"]) * random.uniform(0.5, 1.5))
        self.looking -= 1
        self.done[task_id] += 1

    def _note(self, what: str, status: int, begun: float, told: object) -> None:
        assert 200 <= status < 300 or status == 429, f"{what}: {status} {told}"
        self.statuses[what, status] += 1
        self.slowest[what] = max(self.slowest.get(what, 0), time.monotonic() - begun)


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    """One of `tests.serve.stand_in`'s."""
    command = [sys.executable, "-m", "tests.serve.stand_in", *words]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@contextmanager
def enough_files(count: int) -> Iterator[None]:
    """This process and those that it starts may have so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"this machine allows {hard} open files a process, and {count} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def memory_kib(pid: int, name: str) -> int:
    """`VmHWM` (the most there was) or `VmRSS` (what there is) of a process."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


async def crowd(base: str, folder: Path, submitters: int, stack: ExitStack) -> Crowd:
    """So many clients submit at once, and two look at each task from its acceptance to its end."""
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session, asyncio.TaskGroup() as group:
        found = Crowd(base, session)

        async def one(number: int) -> None:
            task_id = await found.submit(number)
            for _ in range(2):
                group.create_task(found.follow(task_id))

        async with asyncio.timeout(_PATIENCE_SECONDS), asyncio.TaskGroup() as submitting:
            for number in range(submitters):
                submitting.create_task(one(number))
        # Only now, so that all of them look at once.
        stack.enter_context(process("work", str(folder)))
    return found


def test_crowd_is_served_or_told_to_come_again_in_bounded_memory(
    tmp_path: Path, soak_count: SoakCount, capsys: pytest.CaptureFixture[str]
) -> None:
    submitters = soak_count(30, 1000)
    with ExitStack() as stack:
        stack.enter_context(enough_files(4 * submitters + 500))
        server = stack.enter_context(process("serve", str(tmp_path)))
        assert server.stdout is not None
        base = f"http://127.0.0.1:{int(server.stdout.readline())}"
        idle = asyncio.run(first_answer(base, server.pid))
        begun = time.monotonic()
        found = asyncio.run(crowd(base, tmp_path, submitters, stack))
        seconds = time.monotonic() - begun
        peak = memory_kib(server.pid, "VmHWM")
    with capsys.disabled():
        print(
            f"\n{submitters} submissions, {found.most_looking} pollers: {seconds:.1f} s, peak {peak >> 10} MiB after"
            f" {idle >> 10} MiB idle, slowest {found.slowest}, answers {dict(found.statuses)}"
        )
    assert len(found.done) == submitters, "one task a submission"
    assert set(found.done.values()) == {2}
    assert found.most_looking == 2 * submitters
    assert found.statuses["submit", 202] == submitters
    tasks = asyncio.run(kept(tmp_path))
    assert tasks == found.done.keys()
    for task_id in tasks:
        folder = tmp_path / "data" / "tasks" / task_id
        assert (folder / "result" / "video.mp4").read_bytes() == MADE
    bound = idle + 3 * submitters * KIB_A_CLIENT + UPLOADS * KIB_AN_UPLOAD + KIB_BESIDE
    assert peak <= bound, f"{peak >> 10} MiB of {bound >> 10} MiB"


async def first_answer(base: str, pid: int) -> int:
    """KiB of the process once it has answered."""
    async with aiohttp.ClientSession() as session, session.get(f"{base}/readyz") as answer:
        assert answer.status == 200, await answer.text()
    return memory_kib(pid, "VmRSS")


async def kept(folder: Path) -> set[str]:
    """Ids of all tasks that the store has, each done."""
    async with Store(folder / "data" / "troupe.db") as store:
        found, cursor = set[str](), None
        while True:
            page = await store.page(None, cursor=cursor, limit=500)
            assert all(task.state == "done" for task in page.tasks)
            found |= {task.id for task in page.tasks}
            if (cursor := page.cursor) is None:
                return found
