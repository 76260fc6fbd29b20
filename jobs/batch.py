"""The batch driver: Ray Data carries runs to lanes, finished videos are assembled, what got lost is done again alone.

    videos ──flat_map(plan)──► one row a run ──map(Lane, actor pool)──► one row a run ──► driver ──► assemble

Rows are small (frames never leave a lane but for the pins), every row is a block of its own, so a lane takes one run
at a time and results arrive as they are made. Planning runs ahead of the lanes and costs them little.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import platform
import queue
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from cluster.config import Config
from cluster.errors import ClusterError, JobError, TroupeError
from cluster.heap import give_back_freed
from cluster.identity import code_hash
from cluster.processes import die_with_parent
from jobs.assemble import assemble, row_of
from jobs.course import PAUSED
from jobs.lane import run_segments
from jobs.ledger import Strike, WorkFolder, worker_hold, write_row
from jobs.plan import plan_video
from jobs.progress import Reporter
from jobs.strikes import STRIKES
from jobs.task import CODE, VideoTask

log = logging.getLogger(__name__)

Row = dict[str, Any]

#: How often the assembler looks for finished work.
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a video ended."""

    task: VideoTask
    status: Literal["done", "failed"]
    error: str
    row: Row


class Batch:
    """One pass over a list of videos on a connected Ray.

    Args:
        config: lanes, windows, pins.
        lanes: lanes to start.
        reporter: progress.
        on_outcome: told of every video as it ends; called from two threads, one at a time.
        allow_skew: let lanes work whose code is not this process's.
    """

    def __init__(
        self,
        config: Config,
        lanes: int,
        reporter: Reporter,
        on_outcome: Callable[[Outcome], None],
        *,
        allow_skew: bool = False,
    ) -> None:
        self._config = config
        self._allow_skew = allow_skew
        self._lanes = lanes
        self._reporter = reporter
        self._on_outcome = on_outcome
        self._lock = threading.Lock()
        #: Runs that came back in this pass, by video.
        self._returned: dict[int, set[int]] = {}
        #: The first error of each video that has one; its other runs are done all the same.
        self._errors: dict[int, str] = {}
        self._ended: set[int] = set()
        #: Videos whose segments are done; None ends the assembler.
        self._finished: queue.Queue[VideoTask | None] = queue.Queue()
        self._broken: BaseException | None = None

    def run(self, tasks: Sequence[VideoTask]) -> None:
        """Does all videos; returns when each has ended."""
        # A daemon: an interrupted job does not wait for an assembly that will be done again.
        assembler = threading.Thread(target=self._run_assembler, name="assembler", daemon=True)
        assembler.start()
        self._pass(tasks, range(len(tasks)), self._lanes)
        for attempt in range(self._config.troupe.batch.retries):
            # Lost rows: a lane died with them. Each is done again alone, so that the one that kills lanes is known.
            for index in [i for i in range(len(tasks)) if i not in self._ended]:
                log.warning("%s: rows were lost, done again alone (%d)", tasks[index].source.name, attempt + 1)
                self._pass(tasks, [index], 1)
        for index in range(len(tasks)):
            if index not in self._ended:
                reason = "the lanes that worked on it died, again and again"
                error = JobError(
                    tasks[index].source.name, reason, remedy="see Ray's log (/tmp/ray/session_latest/logs)"
                )
                self._fail(index, tasks[index], str(error))
        self._finished.put(None)
        assembler.join()
        if self._broken is not None:
            raise self._broken

    def _pass(self, tasks: Sequence[VideoTask], indices: Sequence[int] | range, lanes: int) -> None:
        self._returned.clear()
        self._errors.clear()
        for row in self._dataset(tasks, indices, lanes).iter_rows():
            index = int(row["video"])
            if index in self._ended:
                continue
            if row["error"]:
                self._errors.setdefault(index, row["error"])
            returned = self._returned.setdefault(index, set())
            returned.add(int(row["run"]))
            if len(returned) < int(row["runs"]):
                continue
            if index in self._errors:
                self._fail(index, tasks[index], self._errors[index])
            else:
                self._ended.add(index)
                self._finished.put(tasks[index])

    def _dataset(self, tasks: Sequence[VideoTask], indices: Sequence[int] | range, lanes: int) -> Dataset:
        settings = self._config.troupe.batch
        _configure_data()
        items = [{"video": index, "task": pickle.dumps(tasks[index])} for index in indices]
        planned = ray.data.from_items(items, override_num_blocks=len(items)).flat_map(
            PlanVideo(self._reporter), num_cpus=settings.lane_cpus, concurrency=min(lanes, len(items))
        )
        with warnings.catch_warnings():
            # Ray 2.60 has no other way to bound the retries of rows, and warns of this one.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            return planned.map(
                Lane,
                fn_constructor_args=(self._config, self._reporter, self._allow_skew),
                compute=ActorPoolStrategy(size=lanes, max_tasks_in_flight_per_actor=2),
                num_cpus=settings.lane_cpus,
                # Lanes restart for ever; rows that died with one are done again alone (`run`), not by Ray for ever.
                max_restarts=-1,
                max_task_retries=1,
            )

    def _run_assembler(self) -> None:
        try:
            self._assemble()
        except BaseException as error:  # raised by `run`: a thread's own would be seen by nobody
            self._broken = error

    def _assemble(self) -> None:
        """The assembler's thread: a Ray task a video, so that a cluster's nodes share the work; as many as lanes."""
        work = ray.remote(num_cpus=self._config.troupe.batch.lane_cpus, max_retries=2)(_assemble_planned)
        pending: dict[ray.ObjectRef, VideoTask] = {}
        more = True
        while more or pending:
            if more and len(pending) < self._lanes:
                with contextlib.suppress(queue.Empty):
                    task = self._finished.get(timeout=_POLL_SECONDS)
                    more = task is not None
                    if task is not None:
                        self._reporter.put(task.fingerprint, stage="assembling")
                        pending[work.remote(task)] = task
            full = not more or len(pending) == self._lanes
            for ref in ray.wait(list(pending), timeout=_POLL_SECONDS if full else 0)[0] if pending else []:
                self._assembled(ref, pending.pop(ref))

    def _assembled(self, ref: ray.ObjectRef, task: VideoTask) -> None:
        try:
            self._end(task, "done", "", ray.get(ref))
        except RayError as error:
            self._end(task, "failed", _error_text(task, getattr(error, "cause", None) or error))

    def _fail(self, index: int, task: VideoTask, error: str) -> None:
        self._ended.add(index)
        self._end(task, "failed", error)

    def _end(self, task: VideoTask, status: Literal["done", "failed"], error: str, row: Row | None = None) -> None:
        if row is None:
            row = row_of(task, status=status, error=error, quarantined=_quarantined(task))
            try:
                write_row(task.root, row)
            except OSError as problem:
                log.warning("%s: its ledger row cannot be written: %s", task.source.name, problem)
        self._reporter.put(task.fingerprint, stage=status)
        with self._lock:
            self._on_outcome(Outcome(task, status, error, row))


class PlanVideo:
    """Plans a video: a row per run that still has work, or one row when all segments are done, or one with an error."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def __call__(self, item: Row) -> list[Row]:
        task: VideoTask = pickle.loads(item["task"])
        row = {"video": item["video"], "run": -1, "runs": 1, "task": item["task"], "error": ""}
        self._reporter.put(task.fingerprint, stage="planning")
        try:
            plan = plan_video(task)
        except Exception as error:
            return [{**row, "error": _error_text(task, error)}]
        give_back_freed()
        work = WorkFolder(task.folder)
        done = work.all_done(plan)
        frames = sum(segment.frames for segment in done.values())
        self._reporter.put(task.fingerprint, planned=(len(plan.scan), frames), stage="waiting")
        pending = [run for run in plan.runs if any(segment.index not in done for segment in run.segments)]
        return [{**row, "run": run.index, "runs": len(pending)} for run in pending] or [row]


class Lane:
    """An actor of the pool: does each row that it is given and answers with an error's text instead of raising."""

    def __init__(self, config: Config, reporter: Reporter, allow_skew: bool) -> None:
        import cv2

        die_with_parent()
        # A lane's light work must not spread over the cores that pins and encoders use.
        cv2.setNumThreads(1)
        self._config = config
        self._reporter = reporter
        self._allow_skew = allow_skew
        self._code = code_hash(*CODE)

    def __call__(self, row: Row) -> Row:
        answer = {key: row[key] for key in ("video", "run", "runs", "error")}
        if row["error"] or row["run"] < 0:
            return answer
        task: VideoTask = pickle.loads(row["task"])
        if task.encoder.codec != "nvenc":
            # A context on the GPU costs memory that belongs to the pins.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        try:
            task = self._with_skew(task)
            plan = plan_video(task)
            self._reporter.put(task.fingerprint, stage="running")
            with self._reporter.frames_of(task.fingerprint) as count_frames, worker_hold(task.root):
                run_segments(
                    task,
                    plan,
                    plan.runs[row["run"]],
                    self._config,
                    on_frames=count_frames,
                    on_note=lambda note: self._reporter.put(task.fingerprint, note=note),
                    on_count=lambda count, by: self._reporter.put(task.fingerprint, counts={count: by}),
                    on_pause=lambda why: self._reporter.put(
                        task.fingerprint, stage="running" if why is None else PAUSED + why
                    ),
                )
        except Exception as error:
            return {**answer, "error": _error_text(task, error)}
        return answer

    def _with_skew(self, task: VideoTask) -> VideoTask:
        """The task with a notice when this process's code is not the job's; refused unless that is allowed."""
        if self._code == task.code:
            return task
        where = f"the lane on {platform.node()}"
        reason = f"runs other code ({self._code}) than this job ({task.code})"
        if not self._allow_skew:
            remedy = "install the same version on every node, or pass --allow-skew"
            raise ClusterError(where, reason, remedy=remedy)
        notice = f"{where} {reason} (--allow-skew)"
        self._reporter.put(task.fingerprint, note=notice)
        return replace(task, notices=(*task.notices, notice))


def warm_workers(count: int) -> None:
    """Has Ray start processes that can plan, be lanes or assemble, without waiting for them.

    A new process imports for seconds; it does so while pins load their models. They carry no runtime environment, nor
    do the batch's operators: Ray would start others for those.
    """
    warm = ray.remote(num_cpus=0, max_retries=0)(_import_batch)
    for _ in range(count):
        warm.remote()


def _import_batch() -> None:
    """Finding this function imports this module."""


def _assemble_planned(task: VideoTask) -> Row:
    die_with_parent()
    with worker_hold(task.root):
        return assemble(task, plan_video(task))


def _configure_data() -> None:
    """Ray Data's settings for rows that are whole runs; they count for datasets made afterwards."""
    # Lost rows are errors to Ray and expected here: we say ourselves which video they belong to.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # Every row a block: a lane takes one run at a time, and its answer does not wait for others.
    context.target_max_block_size = 1
    # A lost row is missing from the answer, which we compare with the plan; it must not fail the others.
    context.max_errored_blocks = -1
    # The guard would end a healthy job whose one run takes long; every wait inside a lane has a bound of its own.
    context.execution_no_progress_timeout_s = -1


def _quarantined(task: VideoTask) -> str:
    """The video's quarantined segments for its row: a JSON list of their last strikes."""
    strikes: dict[int, list[Strike]] = {}
    for strike in WorkFolder(task.folder).all_strikes():
        strikes.setdefault(strike.segment, []).append(strike)
    return json.dumps([asdict(each[-1]) for _, each in sorted(strikes.items()) if len(each) >= STRIKES])


def _error_text(task: VideoTask, error: Exception) -> str:
    """What a user reads; an error that is not one of ours is a bug or the machine's, and its trace goes to the log."""
    name = task.source.name
    if isinstance(error, TroupeError):
        # A pin, a joined file, weights: the user knows the video.
        return str(error) if error.thing == name else f"{name}: {error}"
    log.error("%s", "".join(traceback.format_exception(error)))
    return f"{name}: {type(error).__name__}: {str(error).strip()}"
