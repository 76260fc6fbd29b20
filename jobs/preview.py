"""Contact sheets of finished videos: the source beside the result."""

from __future__ import annotations

from pathlib import Path

from actors.video.decode import Decoder
from actors.video.limits import Limits
from actors.video.sheet import Pick, pick_indices
from actors.video.sheet import write_sheet as write_picture
from jobs.plan import plan_video
from jobs.task import VideoTask


def write_sheet(task: VideoTask, limits: Limits) -> Path:
    """Writes `<output>.jpg` beside a finished output and returns its path.

    Raises:
        MediaError: the source no longer yields the frames of its plan.
        JobError: the result is not what the plan says.
    """
    scan = plan_video(task).scan
    picks = []
    with Decoder(scan, limits) as decoder:
        for index in pick_indices(len(scan)):
            (rgb,) = decoder.frames(index, index + 1)
            seconds = float(int(scan.pts[index]) * scan.info.time_base)
            picks.append(Pick(index, seconds, rgb))
    target = task.output.with_suffix(".jpg")
    write_picture(target, task.output, picks)
    return target
