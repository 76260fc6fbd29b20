"""Memory of a whole job: driver, Ray, lanes and their children, sampled while `python -m jobs.restage` runs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from bench.environment import as_users_have
from bench.processes import pss_by_name

_ROOT = Path(__file__).resolve().parents[1]
#: Reading the maps of all of Ray's processes takes some ten milliseconds.
_SAMPLE_SECONDS = 1.0
_END_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Memory:
    """Sums of PSS in bytes, one a second.

    Attributes:
        seconds: how long the job took.
        samples: those from `settle` seconds after planning to the end of the last video.
        by_name: mean by process name over the same samples.
    """

    seconds: float
    samples: list[int] = field(repr=False)
    by_name: dict[str, int]

    @property
    def mean(self) -> float:
        """Of the samples; 0 when the job ended before the first."""
        return statistics.fmean(self.samples) if self.samples else 0.0

    @property
    def peak(self) -> int:
        """Largest sample."""
        return max(self.samples, default=0)


def measure_job(arguments: Sequence[str], environment: dict[str, str], settle: float) -> Memory:
    """Runs `python -m jobs.restage … --json` on a Ray of its own and samples its memory.

    Args:
        arguments: of the command, without `--json`.
        environment: beside this process's own.
        settle: seconds after the plan is made before samples count. Planning decodes the whole clip before that, while
            no lane is at work.

    Raises:
        RuntimeError: the job failed; the text is what it printed.
    """
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        job = subprocess.Popen(
            [sys.executable, "-m", "jobs.restage", *arguments, "--json"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=_ROOT,
            env={**as_users_have(), **environment},
            start_new_session=True,
        )
        events = _Events(job)
        samples: list[dict[str, int]] = []
        try:
            events.planned.wait()
            events.ended.wait(settle)
            while not events.ended.is_set():
                samples.append(pss_by_name(job.pid))
                events.ended.wait(_SAMPLE_SECONDS)
            code = job.wait(_END_SECONDS)
        finally:
            job.kill()
            job.wait()
        if code != 0:
            errors.seek(0)
            raise RuntimeError("\n".join([*events.lines[-5:], errors.read().decode(errors="replace")]))
    names = {name for sample in samples for name in sample}
    by_name = {name: round(statistics.fmean(s.get(name, 0) for s in samples)) for name in names}
    ranked = dict(sorted(by_name.items(), key=lambda item: -item[1]))
    return Memory(time.perf_counter() - begun, [sum(sample.values()) for sample in samples], ranked)


class _Events:
    """The job's JSON lines, read as they come.

    Attributes:
        planned: set when the plan is made, or the job has ended.
        ended: set when a video has ended, or the job has.
        lines: all of them.
    """

    def __init__(self, job: subprocess.Popen[str]) -> None:
        self.planned = threading.Event()
        self.ended = threading.Event()
        self.lines: list[str] = []
        assert job.stdout is not None
        threading.Thread(target=self._read, args=(job.stdout,), daemon=True).start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self.lines.append(line.rstrip())
            event = json.loads(line)
            if event["event"] == "progress" and event["of"]:
                self.planned.set()
            if event["event"] in ("done", "failed"):
                self.ended.set()
        self.ended.set()
        self.planned.set()
