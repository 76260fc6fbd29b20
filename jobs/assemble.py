"""From finished segments to the final file: join, add the sound, verify, publish, record."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from actors.video.join import join
from actors.video.verify import verify
from cluster.files import PARTIAL, partial_path, publish, sha256_of
from jobs.ledger import WorkFolder, write_row
from jobs.plan import Plan
from jobs.task import VideoTask


def assemble(task: VideoTask, plan: Plan) -> dict[str, Any]:
    """Makes a video's final file from its segments and writes its ledger row.

    The file gets its name only after it was verified; segments are removed then.

    Returns:
        The ledger row.

    Raises:
        JobError: a segment is missing, or the joined file is not what the plan says.
        MediaError: the source's sound cannot be read.
    """
    work = WorkFolder(task.folder)
    done = work.all_done(plan)
    begun = time.perf_counter()
    task.output.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(task.output)
    try:
        join([work.segment_path(segment) for segment in plan.segments], plan.scan, partial, task.limits)
        joined = time.perf_counter()
        checked = verify(partial, plan.scan, task.limits)
        publish(partial, task.output)
    finally:
        partial.unlink(missing_ok=True)
    seconds: dict[str, float] = {}
    for segment in done.values():
        for stage, spent in segment.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    seconds |= {"join": joined - begun, "verify": time.perf_counter() - joined}
    notices = list(plan.scan.info.notices)
    if plan.approximate:
        notices.append("approximate: segments inside shots started from warm-up frames (--split-shots)")
    row = row_of(
        task,
        status="done",
        frames=len(plan.scan),
        damaged=plan.scan.damaged,
        segments=len(plan.segments),
        retries=sum(segment.retries for segment in done.values()),
        seconds=json.dumps({stage: round(spent, 3) for stage, spent in seconds.items()}),
        notices=[*notices, *checked.notices],
        output_bytes=task.output.stat().st_size,
        output_sha256=sha256_of(task.output),
    )
    write_row(task.root, row)
    work.remove_segments()
    return row


def row_of(task: VideoTask, *, status: str, error: str = "", **values: Any) -> dict[str, Any]:
    """A ledger row for a task; what is not given is empty."""
    empty: Mapping[str, Any] = {
        "notices": [], "frames": 0, "damaged": 0, "segments": 0, "retries": 0, "seconds": "{}",
        "output_bytes": 0, "output_sha256": "",
    }  # fmt: skip
    return {
        "fingerprint": task.fingerprint,
        "job": task.name,
        "input": str(task.source),
        "output": str(task.output),
        "status": status,
        "error": error,
        "settings": json.dumps(
            {**task.settings, "steps": [asdict(step) for step in task.steps], "encoder": asdict(task.encoder)},
            default=str,
        ),
        "weights": json.dumps(dict(task.weights)),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **empty,
        **values,
    }


def remove_partial_outputs(task: VideoTask) -> None:
    """Removes what a killed assembly left beside the output. Only for the holder of the output folder's lock."""
    for leftover in task.output.parent.glob(f".{task.output.name}.*{PARTIAL}"):
        leftover.unlink(missing_ok=True)
