"""From finished segments to the final file: join, add the sound, verify, publish, record."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from actors.video.beat import Beat, nothing
from actors.video.info import UNKNOWN
from actors.video.join import join
from actors.video.sound import extract_sound
from actors.video.verify import verify
from cluster.files import publish
from jobs.ledger import WorkFolder, write_row
from jobs.plan import Plan
from jobs.task import VideoTask


def assemble(task: VideoTask, plan: Plan, beat: Beat = nothing) -> dict[str, Any]:
    """Makes a video's final file from its segments and writes its ledger row.

    The file gets its name only after it was verified; segments are removed then.

    Args:
        task: the video.
        plan: its plan.
        beat: called about once a second before the file gets its name; may raise.

    Returns:
        The ledger row.

    Raises:
        JobError: a segment is missing, or the joined file is not what the plan says.
        MediaError: the source's sound cannot be read.
    """
    work = WorkFolder(task.folder)
    done = work.all_done(plan)
    scan = plan.scan
    begun = time.perf_counter()
    # In the work folder until it is verified: what bears the output's name is right.
    joined, sounds = work.path / "joined.mp4", work.path / "sound.mp4"
    # From the input itself: a remuxed copy passes MPEG-2 sound off as MP3.
    sound = extract_sound(scan.path, sounds, task.limits, beat=beat)
    made = join(
        [work.segment_path(segment) for segment in plan.segments],
        joined,
        pts=scan.pts,
        time_base=scan.info.time_base,
        last_duration=scan.last_duration,
        sound=sound,
        beat=beat,
    )
    joined_at = time.perf_counter()
    verify(
        joined,
        pts=scan.pts,
        time_base=scan.info.time_base,
        last_duration=scan.last_duration,
        sounds=sound.tracks if sound else (),
        threads=task.limits.decode_threads,
        beat=beat,
    )
    verified_at = time.perf_counter()
    task.output.parent.mkdir(parents=True, exist_ok=True)
    publish(joined, task.output)
    seconds: dict[str, float] = {}
    for segment in done.values():
        for stage, spent in segment.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    seconds |= {"join": joined_at - begun, "verify": verified_at - joined_at}
    # Each once, in the order of their first segment.
    notices = [*scan.info.notices, *dict.fromkeys(notice for index in sorted(done) for notice in done[index].notices)]
    if scan.damaged:
        notices.append(f"{scan.damaged} damaged frames (--allow-damaged)")
    if sound:
        encoded = [(n, track.codec) for n, track in enumerate(sound.tracks) if not track.copied]
        notices += [f"sound track {n}: {codec} became AAC" for n, codec in encoded]
    unknown = [track.index for track in scan.info.sounds if track.codec == UNKNOWN]
    notices += [f"sound stream {index} left out: its codec is not known here" for index in unknown]
    if not task.encoder.reproducible:
        notices.append("encoded by NVENC: doing it again may give other bytes")
    if plan.approximate:
        notices.append("approximate: segments inside shots started from warm-up frames (--split-shots)")
    row = row_of(
        task,
        status="done",
        frames=len(scan),
        damaged=scan.damaged,
        segments=len(plan.segments),
        retries=sum(segment.retries for segment in done.values()),
        seconds=json.dumps({stage: round(spent, 3) for stage, spent in seconds.items()}),
        notices=notices,
        output_bytes=made.nbytes,
        output_sha256=made.sha256,
    )
    write_row(task.root, row)
    work.remove_segments()
    return row


def row_of(task: VideoTask, *, status: str, error: str = "", **values: Any) -> dict[str, Any]:
    """A ledger row for a task; what is not given is empty."""
    empty: Mapping[str, Any] = {
        "notices": [], "frames": 0, "damaged": 0, "segments": 0, "quarantined": "[]", "retries": 0, "seconds": "{}",
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
        "command": json.dumps(asdict(task.command) if task.command else None),
        "weights": json.dumps(dict(task.weights)),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **empty,
        **values,
    }
