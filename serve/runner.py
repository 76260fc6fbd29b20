"""The Runner: a Serve deployment of resident lanes. Each replica claims one task after the other and does it.

Nobody calls a Runner: it asks the store for work. So whoever dies, whatever was accepted is found again: a runner that
falls silent loses its lease, and the next one goes on behind the last segment that is whole. A replica that is told to
end gives its task back first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from cluster.config import Config
from cluster.errors import ClusterError, JobError, PinAwayError, StoppedError, TroupeError
from cluster.governor import disk_governor
from cluster.heap import give_back_freed
from cluster.processes import die_with_parent
from serve.edge.problems import problem_of
from serve.edge.request_id import request_id
from serve.folders import DataFolder, TaskFolder
from serve.logs import log_as_json, task_id
from serve.payload import BACKGROUND, INPUT, MASK, ON_DEMAND, RestagePayload
from serve.places import data_root, database_url
from serve.progress import TaskProgress
from serve.restage import STAGES, restage
from serve.store import Claim, Document, Store, StoreError, TaskState
from serve.store.values import MAX_PRIORITY
from serve.transfer.fetch import FetchError, FetchLimits, GuardedClient, NotGivenError
from serve.transfer.pace import Patience
from serve.transfer.spool import SpoolError
from serve.work import Made, Work

log = logging.getLogger(__name__)

#: What each kind does, and its stages.
KINDS: dict[str, tuple[Callable[[Work], Made], tuple[str, ...]]] = {"restage": (restage, STAGES)}

_POLL_SECONDS = 0.25
_BEAT_SECONDS = 1.0
#: After an error of the machine a task waits so long, times its attempts.
_AGAIN_SECONDS = 5.0
_STORE_AGAIN_SECONDS = 2.0
#: So long waits a task whose pin is away, as while it is deployed.
_AWAY_SECONDS = 15.0
#: Serve waits so long for a replica that is to end: one call to a pin, and what is being encoded.
SHUTDOWN_SECONDS = 30.0


class Runner:
    """One lane and the loop around it.

    Args:
        config: a `Config` as a mapping (Serve passes plain values).
        express: whether it does only what somebody waits for.
    """

    def __init__(self, config: Mapping[str, Any], express: bool = False) -> None:
        import cv2

        die_with_parent()
        # A lane's light work must not spread over the cores that pins and encoders use.
        cv2.setNumThreads(1)
        log_as_json()
        self._config = Config.model_validate(config)
        self._service = self._config.troupe.service
        self._at_least = ON_DEMAND if express else -MAX_PRIORITY
        self._name = f"{'express' if express else 'runner'}-{os.getpid()}"
        self._data = DataFolder(data_root(self._service, os.environ))
        self._ending = threading.Event()
        self._alive = time.monotonic()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name=self._name, daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Raises when the loop is gone or stuck; Serve asks, and replaces the replica then."""
        if not self._thread.is_alive():
            raise ClusterError(self._name, "has ended", remedy="see its log; it is replaced")
        silent = time.monotonic() - self._alive
        if silent > max(60.0, 2 * self._service.lease_s):
            raise ClusterError(self._name, f"has been silent for {silent:.0f} s", remedy="it is replaced")

    def __del__(self) -> None:
        # Serve calls it when it ends a replica on purpose.
        if hasattr(self, "_thread"):
            self._ending.set()
            self._thread.join(SHUTDOWN_SECONDS - 2)

    async def _run(self) -> None:
        client = GuardedClient(self._service.allow_networks, self._service.allow_ports)
        store = Store(database_url(self._service, os.environ), attempts=self._service.attempts, connections=2)
        async with client:
            try:
                await self._opened(store)
                while not self._ending.is_set():
                    await self._next(store, client)
            finally:
                await store.close()

    async def _opened(self, store: Store) -> None:
        while not self._ending.is_set():
            opening = asyncio.create_task(store.open())
            # Until a database is upgraded may take an hour; the loop lives meanwhile.
            while not (await asyncio.wait({opening}, timeout=_BEAT_SECONDS))[0]:
                self._alive = time.monotonic()
            try:
                await opening
                break
            except StoreError as error:
                log.warning("%s: %s", self._name, error)
                await asyncio.sleep(_STORE_AGAIN_SECONDS)

    async def _next(self, store: Store, client: GuardedClient) -> None:
        self._alive = time.monotonic()
        try:
            claim = await store.claim(self._name, self._service.lease_s, at_least=self._at_least)
        except StoreError as error:
            log.warning("%s: %s", self._name, error)
            await asyncio.sleep(_STORE_AGAIN_SECONDS)
            return
        if claim is None:
            await asyncio.sleep(_POLL_SECONDS)
            return
        task_id.set(claim.task.id)
        request_id.set(str(claim.task.payload.get("request_id", "")))
        log.info("begins %s, attempt %d", claim.task.kind, claim.task.attempts)
        try:
            await _Attempt(self, store, client, claim).do()
        finally:
            task_id.set("")
            request_id.set("")
            give_back_freed()


class _Attempt:
    """One claim, from its first second to its end in the store."""

    def __init__(self, runner: Runner, store: Store, client: GuardedClient, claim: Claim) -> None:
        self._runner, self._store, self._client, self._claim = runner, store, client, claim
        self._folder = runner._data.of(claim.task.id)
        self._kind: Callable[[Work], Made] | None
        self._kind, stages = KINDS.get(claim.task.kind, (None, ()))
        self._progress = TaskProgress(stages, self._folder.input.parent)
        self._cancelled = self._lost = False
        self._begun = time.monotonic()

    async def do(self) -> None:
        """Works, and tells the store meanwhile that it does."""
        beating = asyncio.create_task(self._beat())
        try:
            ended = await self._work()
        except Exception as error:
            ended = self._failed(error)
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating
        await self._persist(ended)

    async def _work(self) -> Callable[[], Any]:
        if self._kind is None:
            reason = f"is of the kind {self._claim.task.kind}, which is not done here"
            raise JobError("task", reason, remedy="the service is older than whoever accepted it: bring it up to date")
        await self._fetch()
        work = Work(self._claim.task, self._folder, self._runner._config, self._progress, self._stop)
        made = await asyncio.to_thread(self._kind, work)
        cost = {**made.cost, "wall_s": round(time.monotonic() - self._begun, 3)}
        self._progress.begin("")
        log.info("is done in %.1f s", cost["wall_s"])
        progress = self._progress.document()

        async def done() -> None:
            # The input goes once the store has heard: until then somebody may have to do the task again.
            if await self._store.finish(self._claim, TaskState.DONE, result=made.result, cost=cost, progress=progress):
                await asyncio.to_thread(self._runner._data.keep_result, self._claim.task.id)

        return done

    def _failed(self, error: Exception) -> Callable[[], Any]:
        """What the store is told of an attempt that raised."""
        task = self._claim.task
        if self._cancelled:
            log.info("is cancelled")
            return self._end_cancelled
        if isinstance(error, StoppedError):
            log.info("is given back")
            return lambda: self._store.release(self._claim)
        problem = self._problem(error)
        if _pin_is_away(error):
            # No fault of the task, nor of this attempt: whoever looks reads what it waits for.
            log.warning("is given back: %s", error)
            self._progress.paused(problem["detail"])
            waiting = self._progress.document()
            return lambda: self._store.release(self._claim, progress=waiting, delay_s=_AWAY_SECONDS)
        if _may_pass(error):
            log.warning("attempt %d failed: %s", task.attempts, error, exc_info=not isinstance(error, TroupeError))
            return lambda: self._store.retry_later(self._claim, problem, delay_s=_AGAIN_SECONDS * task.attempts)
        log.info("failed: %s", error)
        return lambda: self._store.finish(
            self._claim, TaskState.FAILED, error=problem, cost=self._cost(), progress=self._progress.document()
        )

    async def _end_cancelled(self) -> None:
        # Before the store is told, for then it may be queued again; not if somebody else has it already.
        if not self._lost:
            try:
                await asyncio.to_thread(self._runner._data.remove, self._claim.task.id)
            except OSError as error:
                log.warning("its files are left to be tidied: %s", error)
        await self._store.finish(self._claim, TaskState.CANCELLED, cost=self._cost())

    def _problem(self, error: Exception) -> Document:
        """For the client, who knows the files by the names that they have there."""
        names = {
            INPUT: str(self._claim.task.payload.get("name") or "the video"),
            MASK: "the mask",
            str(self._claim.task.payload.get("background") or BACKGROUND): "the background",
        }
        if isinstance(error, TroupeError) and error.thing in names:
            named = type(error)(names[error.thing], error.reason, place=error.place, remedy=error.remedy)
            named.__cause__, error = error.__cause__, named
        return problem_of(error).body(str(self._claim.task.payload.get("request_id", "")))

    def _cost(self) -> dict[str, Any]:
        return {"seconds": {}, "wall_s": round(time.monotonic() - self._begun, 3)}

    async def _fetch(self) -> None:
        payload, target = RestagePayload.model_validate(self._claim.task.payload), self._folder.input / INPUT
        self._progress.begin("fetching")
        await asyncio.to_thread(_make, self._folder)
        if not payload.url or target.exists():
            return
        await self._room()
        service = self._runner._service
        limits = FetchLimits(
            max_bytes=int(service.max_upload_gib * 2**30), patience=Patience(total_seconds=service.fetch_seconds)
        )
        fetching = asyncio.create_task(self._client.fetch(payload.url, target, limits))
        try:
            while not (await asyncio.wait({fetching}, timeout=_POLL_SECONDS))[0]:
                self._stop()
            await fetching
        finally:
            fetching.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await fetching

    async def _room(self) -> None:
        """Waits until the disk has room, as lanes do."""
        governor = disk_governor(self._runner._config.troupe.governor, self._folder.input.parent)
        while why := await asyncio.to_thread(governor.check):
            self._progress.paused(why)
            self._stop()
            await asyncio.sleep(_POLL_SECONDS)
        self._progress.paused(None)

    def _stop(self) -> None:
        if self._cancelled or self._lost or self._runner._ending.is_set():
            raise StoppedError("task", "was cancelled" if self._cancelled else "is given back")

    async def _beat(self) -> None:
        while True:
            self._runner._alive = time.monotonic()
            try:
                heard = await self._store.heartbeat(self._claim, self._progress.document())
            except StoreError as error:
                log.warning("cannot say that it lives: %s", error)
            else:
                self._cancelled = self._cancelled or heard.cancel
                if heard.lost and not self._lost:
                    log.warning("its lease was lost: somebody else has it")
                    self._lost = True
            await asyncio.sleep(_BEAT_SECONDS)

    async def _persist(self, ended: Callable[[], Any]) -> None:
        """Tells the store until it has heard; if it is gone for longer than ten leases, the task is done again."""
        give_up = time.monotonic() + 10 * self._claim.lease_s
        while True:
            self._runner._alive = time.monotonic()
            try:
                await ended()
                return
            except StoreError as error:
                log.warning("cannot tell how it ended: %s", error)
                if time.monotonic() > give_up or self._runner._ending.is_set():
                    return
                # As often as a heartbeat: once the store is back, the end is there before somebody takes the task.
                await asyncio.sleep(_BEAT_SECONDS)


def _may_pass(error: BaseException | None) -> bool:
    """Whether another attempt may go better: the machine's fault, or nobody knows whose; not the input's."""
    if error is None or isinstance(error, NotGivenError):
        return False
    if isinstance(error, ClusterError | FetchError | SpoolError) or not isinstance(error, TroupeError):
        return True
    return _may_pass(error.__cause__) if isinstance(error.__cause__, TroupeError) else False


def _pin_is_away(error: BaseException | None) -> bool:
    return isinstance(error, PinAwayError) or (isinstance(error, JobError) and _pin_is_away(error.__cause__))


def _make(folder: TaskFolder) -> None:
    for part in (folder.input, folder.work, folder.result):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
