"""A job's metrics: what its lanes told the board, reported from the driver until the job ends."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from cluster.metrics import JobMetrics
from jobs.course import Pace, reading
from jobs.progress import Reporter

_POLL_SECONDS = 2.0
_JOIN_SECONDS = 5.0


@contextmanager
def metering(reporter: Reporter, videos: int, output: Path) -> Iterator[None]:
    """Reports the job's metrics while the block runs, and once more after it.

    Args:
        reporter: the driver's end of the board.
        videos: how many the job has.
        output: folder of the results, whose disk's room is told.
    """
    metrics = JobMetrics(ray.get_runtime_context().get_job_id())
    pace, stages, stop = Pace(), dict[str, int](), threading.Event()

    def report() -> None:
        now = reading(reporter.snapshot(), videos, pace, _free(output), stages)
        stages.update(now.videos)
        metrics.report(now)

    def follow() -> None:
        while not stop.wait(_POLL_SECONDS):
            report()

    thread = threading.Thread(target=follow, name="metering", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_JOIN_SECONDS)
        report()


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
