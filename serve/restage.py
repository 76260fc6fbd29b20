"""The kind `restage`: a video of a task's folder on its way through planning, lane and assembly, in this process.

The same modules do it as in a batch job, without Ray Data, whose start costs seconds. What is done stays in the task's
`work` folder, so that whoever takes the task over goes on behind the last finished segment.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from cluster.calls import Call
from cluster.errors import ClusterError, UsageError
from cluster.heap import give_back_freed
from cluster.weights import default_store
from jobs.assemble import assemble
from jobs.command import choose_encoder
from jobs.inputs import Input
from jobs.lane import run_segments
from jobs.ledger import WorkFolder, output_lock, read_row
from jobs.limits import for_short_clips
from jobs.pins import examine, needed_pins, not_expected
from jobs.plan import plan_video
from jobs.restage.ingest import Ingest
from jobs.strikes import QuarantinedError
from jobs.task import VideoTask
from serve.choices import require_weights
from serve.edge.problems import with_fields
from serve.payload import INPUT, ON_DEMAND, RESULT, RestagePayload
from serve.places import library_of
from serve.work import Made, Work

#: How long a runner that lost the task may still hold its folder, in leases; and how often that is looked at.
_OTHER_LEASES, _LOOK_SECONDS = 4, 0.2

STAGES = ("fetching", "planning", "running", "assembling")


def restage(work: Work) -> Made:
    """Does what a payload says.

    Raises:
        StoppedError: somebody asked for it; what is done stays.
        UsageError: the settings cannot be.
        MediaError: the input or the background is refused.
        WeightsError: weights are missing.
        PinAwayError: a pin is not there or not what this process expects.
        ClusterError: a pin was lost, or another process is at work in the folder.
        JobError: a segment failed.
    """
    payload = RestagePayload.model_validate(work.task.payload)
    with _alone(work):
        work.progress.begin("planning")
        task = _task_of(work, payload)
        _forgive(work, WorkFolder(task.folder))
        # Who did it may have ended before it could say so.
        row = read_row(task.root, task.fingerprint)
        if row is None or row["status"] != "done" or not task.output.is_file():
            row = _done(work, task, payload)
    return Made(_result_of(row, payload), _cost_of(row))


def _done(work: Work, task: VideoTask, payload: RestagePayload) -> dict[str, Any]:
    """Plans, performs and assembles; the ledger's row."""
    _check_pins(task, work)
    plan = plan_video(task, beat=work.stop)
    give_back_freed()
    done = WorkFolder(task.folder).all_done(plan)
    work.progress.planned(len(plan.scan), sum(segment.frames for segment in done.values()))
    work.progress.begin("running")
    for run in plan.runs:
        try:
            run_segments(
                task,
                plan,
                run,
                work.config,
                on_frames=work.progress.frames,
                on_note=work.progress.note,
                on_pause=work.progress.paused,
                stop=work.stop,
                call=Call("interactive", request=payload.request_id),
            )
        except QuarantinedError as error:
            remedy = "a retry of the task (its link `retry`) tries it again"
            raise QuarantinedError(error.thing, error.reason, place=error.place, remedy=remedy) from error
    work.progress.begin("assembling")
    return assemble(task, plan, beat=work.stop)


def _task_of(work: Work, payload: RestagePayload) -> VideoTask:
    settings, config = payload.settings, work.config
    if work.task.priority >= ON_DEMAND:  # whose length was looked at
        config = for_short_clips(config)
    if payload.background:
        settings = settings.model_copy(update={"background": str(work.folder.input / payload.background)})
    ingest = Ingest(
        settings,
        config,
        work.folder.work,
        default_store(os.environ),
        library_of(config),
        choose_encoder(config.troupe.encode, settings.crf, settings.x264, work.progress.note),
        payload.allow_damaged,
        payload.split_shots,
        beat=work.stop,
    )
    ingest.check_background()
    item = Input(work.folder.input / INPUT, work.folder.result / RESULT)
    look = ingest.look(item)
    require_weights(ingest.missing_weights([look.matte]))
    return ingest.task(item, look)


@contextmanager
def _alone(work: Work) -> Iterator[None]:
    """Holds the work folder. A runner that was taken for dead may still be at it: it stops when it hears that it lost
    its lease, which is waited for, because a failed attempt here would count against the task."""
    deadline = time.monotonic() + _OTHER_LEASES * work.config.troupe.service.lease_s
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(output_lock(work.folder.work))
                break
            except UsageError as error:
                if not isinstance(error.__cause__, BlockingIOError) or time.monotonic() > deadline:
                    reason = "another runner is still at work on it"
                    raise ClusterError("task", reason, remedy="it is begun again") from error
            work.stop()
            time.sleep(_LOOK_SECONDS)
        yield


def _forgive(work: Work, done: WorkFolder) -> None:
    """Somebody who queues a failed task again asks for its quarantined segments too, once."""
    told = work.folder.work / f"round-{work.task.round}"
    if work.task.round and not told.exists():
        done.forget_strikes()
        told.touch()


def _check_pins(task: VideoTask, work: Work) -> None:
    for pin in needed_pins([task], work.config):
        _, differences = examine(pin, [task], work.config, work.stop)
        if differences:
            raise not_expected(pin, differences, "the service with it")


def _result_of(row: Mapping[str, Any], payload: RestagePayload) -> dict[str, Any]:
    return {
        "file": RESULT,
        "media_type": "video/mp4",
        "bytes": row["output_bytes"],
        "sha256": row["output_sha256"],
        "frames": row["frames"],
        "damaged": row["damaged"],
        "notices": [with_fields(notice) for notice in row["notices"]],
        "not_done": list(payload.not_done),
    }


def _cost_of(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"seconds": json.loads(row["seconds"]), "segments": row["segments"], "retries": row["retries"]}
