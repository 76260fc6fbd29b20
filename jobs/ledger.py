"""The durable record: segments with their carry, a journal per run, one Parquet row per finished video.

    output/.troupe/lock                        held while a job writes into this output folder
    output/.troupe/workers                     held by each of its lanes and assemblers while they work
    output/.troupe/ledger/<fingerprint>.parquet  one row a video: what it was, what it cost, what went wrong
    output/.troupe/<fingerprint>/scan.npz      the plan's truth
                                 run-0000.jsonl   what this run's lane finished, appended and fsynced
                                 strikes-0000.jsonl   which of its segments pins died of, the same way
                                 00000.mp4 00000.npz   a segment and the carry after its last frame

A segment counts as done when its journal line is there and both files have the sizes and hashes that the line names.
Files are written under a name of their own, fsynced, renamed; a journal has one writer, the lane that owns the run,
so lanes on several nodes never append to one file. Everything else in a work folder is a leftover and may be removed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.frames import Carry
from cluster.errors import JobError, UsageError
from cluster.files import PARTIAL, sha256_of, written_whole
from jobs.plan import Plan, Run, Segment

T = TypeVar("T")

log = logging.getLogger(__name__)

_STRIKES = "strikes-*.jsonl"
_WORKERS = "workers"

#: How long the lanes and assemblers of a job that was killed are waited for, and how often that is looked at.
_WORKERS_SECONDS, _LOOK_SECONDS = 60, 0.1

ROW = pa.schema(
    [
        ("fingerprint", pa.string()),
        ("job", pa.string()),
        ("input", pa.string()),
        ("output", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("notices", pa.list_(pa.string())),
        ("settings", pa.string()),
        ("command", pa.string()),
        ("weights", pa.string()),
        ("frames", pa.int64()),
        ("damaged", pa.int64()),
        ("segments", pa.int64()),
        ("quarantined", pa.string()),
        ("retries", pa.int64()),
        ("seconds", pa.string()),
        ("output_bytes", pa.int64()),
        ("output_sha256", pa.string()),
        ("finished_at", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class DoneSegment:
    """A finished segment as its journal line records it.

    Attributes:
        index, frames: which segment and how long.
        bytes, sha256: of the encoded file.
        carry_sha256: of the carry file.
        seconds: by stage (`decode`, a model's name, `compose`, `encode`).
        retries: calls that were repeated for it.
        notices: what whoever reads the video's row must know of how it was made.
    """

    index: int
    frames: int
    bytes: int
    sha256: str
    carry_sha256: str
    seconds: Mapping[str, float]
    retries: int
    notices: Sequence[str]


@dataclass(frozen=True, slots=True)
class Strike:
    """A pin died while it executed a call of this segment.

    Attributes:
        segment, first, last: its index, and its frames (`last` is excluded).
        reason: what happened.
        at: when, UTC, ISO 8601.
    """

    segment: int
    first: int
    last: int
    reason: str
    at: str


class WorkFolder:
    """One video's folder under `.troupe`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def segment_path(self, segment: Segment) -> Path:
        """Where a finished segment lies."""
        return self.path / f"{segment.index:05d}.mp4"

    def store_carries(self, segment: Segment, carries: Sequence[Carry]) -> str:
        """Stores the state after a segment; returns the file's sha256."""
        arrays = {f"{step}/{name}": array for step, carry in enumerate(carries) for name, array in carry.items()}
        with written_whole(self._carry_path(segment)) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
        return sha256_of(self._carry_path(segment))

    def load_carries(self, segment: Segment, steps: int) -> list[dict[str, Any]]:
        """The state after a finished segment, one carry per step of the chain."""
        carries: list[dict[str, Any]] = [{} for _ in range(steps)]
        with np.load(self._carry_path(segment), allow_pickle=False) as npz:
            for key in npz.files:
                step, name = key.split("/", 1)
                carries[int(step)][name] = npz[key]
        return carries

    def record(self, run: Run, done: DoneSegment) -> None:
        """Appends a journal line and waits until it is on disk."""
        _append(self._journal_path(run), {name: getattr(done, name) for name in DoneSegment.__slots__})

    def done(self, run: Run) -> dict[int, DoneSegment]:
        """The run's finished segments by index, each checked against its files."""
        by_index = {segment.index: segment for segment in run.segments}
        found: dict[int, DoneSegment] = {}
        for entry in _entries(self._journal_path(run), DoneSegment):
            segment = by_index.get(entry.index)
            if segment is not None and self._intact(segment, entry):
                found[entry.index] = entry
        return found

    def all_done(self, plan: Plan) -> dict[int, DoneSegment]:
        """Every finished segment of the video by index."""
        return {index: done for run in plan.runs for index, done in self.done(run).items()}

    def strike(self, run: Run, strike: Strike) -> None:
        """Appends a strike and waits until it is on disk."""
        _append(self._strikes_path(run), asdict(strike))

    def strikes(self, run: Run) -> list[Strike]:
        """The strikes of a run's segments, oldest first."""
        return _entries(self._strikes_path(run), Strike)

    def all_strikes(self) -> list[Strike]:
        """Those of all runs."""
        return [strike for path in sorted(self.path.glob(_STRIKES)) for strike in _entries(path, Strike)]

    def forget_strikes(self) -> None:
        """Gives every quarantined segment another try."""
        for path in self.path.glob(_STRIKES):
            path.unlink(missing_ok=True)

    def remove_segments(self) -> None:
        """Removes segments, carries, journals and what they were assembled in, of a video that is assembled or is to be
        redone from the start, and what killed lanes left half written. The plan stays, and with it the copy of a
        transport stream that it was made of."""
        whole = ("[0-9]*.mp4", "[0-9]*.npz", "run-*.jsonl", _STRIKES, "sound.mp4", "joined.mp4")
        for pattern in (*whole, f".*{PARTIAL}"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)

    def _carry_path(self, segment: Segment) -> Path:
        return self.path / f"{segment.index:05d}.npz"

    def _journal_path(self, run: Run) -> Path:
        return self.path / f"run-{run.index:04d}.jsonl"

    def _strikes_path(self, run: Run) -> Path:
        return self.path / f"strikes-{run.index:04d}.jsonl"

    def _intact(self, segment: Segment, entry: DoneSegment) -> bool:
        video, carry = self.segment_path(segment), self._carry_path(segment)
        return (
            entry.frames == segment.last - segment.first
            and video.is_file()
            and carry.is_file()
            and video.stat().st_size == entry.bytes
            and sha256_of(video) == entry.sha256
            and sha256_of(carry) == entry.carry_sha256
        )


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    """Appends a line of JSON and waits until it is on disk."""
    line = json.dumps(entry).encode() + b"\n"
    with path.open("a+b") as file:
        # A kill may have torn the last line; what is appended to it would be lost with it.
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _entries(path: Path, kind: type[T]) -> list[T]:
    """The lines of such a file; one that a kill has torn did not happen."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(ValueError, TypeError):
            found.append(kind(**json.loads(line)))
    return found


@contextmanager
def output_lock(root: Path) -> Iterator[None]:
    """Holds an output folder's `.troupe` for one job at a time; a killed job's hold ends with it, and what Ray has not
    yet ended of its lanes and assemblers is waited for.

    Raises:
        UsageError: another job is writing there, or nobody can.
    """
    with ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((root / "lock").open("a+"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _wait_for_workers(root)
        except BlockingIOError as error:
            raise UsageError(
                root.parent, "another job is writing here", remedy="wait for it or choose another -o"
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(root.parent, f"cannot be written to: {reason}", remedy="choose another -o") from error
        yield


@contextmanager
def worker_hold(root: Path) -> Iterator[None]:
    """Held, by any number at once, by the processes that do a job's work in its output folder: they may outlive it."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / _WORKERS).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _wait_for_workers(root: Path) -> None:
    """Waits until no process holds the folder as a worker. Such a one belongs to a job that was killed; it may be about
    to finish a video that a new job, which looked a moment too early, would begin again.

    Raises:
        BlockingIOError: one still works after a minute.
    """
    deadline = time.monotonic() + _WORKERS_SECONDS
    with (root / _WORKERS).open("a+") as file:
        told = False
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            if not told:
                log.warning("%s: processes of a job that was killed are ending", root.parent)
                told = True
            time.sleep(_LOOK_SECONDS)


def remove_partials(root: Path, outputs: Iterable[Path]) -> None:
    """Removes what killed runs left half written. Only for the holder of the output folder's lock.

    Args:
        root: the output folder's `.troupe`, where everything half written is theirs.
        outputs: results, beside which they may have left some.
    """
    for partial in root.rglob(f"*{PARTIAL}"):
        partial.unlink(missing_ok=True)
    for output in outputs:
        for partial in output.parent.glob(f".{escape(output.name)}.*{PARTIAL}"):
            partial.unlink(missing_ok=True)


def write_row(root: Path, row: Mapping[str, Any]) -> None:
    """Writes a video's row, replacing the one of an earlier try."""
    target = _row_path(root, row["fingerprint"])
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as partial:
        pq.write_table(pa.Table.from_pylist([dict(row)], schema=ROW), partial)


def forget_row(root: Path, fingerprint: str) -> None:
    """Removes a video's row, if there is one."""
    _row_path(root, fingerprint).unlink(missing_ok=True)


def read_row(root: Path, fingerprint: str) -> dict[str, Any] | None:
    """A video's row, None when there is none.

    Raises:
        JobError: the row's file is damaged.
    """
    path = _row_path(root, fingerprint)
    return _read(path) if path.is_file() else None


def read_rows(root: Path) -> list[dict[str, Any]]:
    """The rows of all videos, by fingerprint.

    Raises:
        JobError: a row's file is damaged.
    """
    return [_read(path) for path in sorted(root.glob("ledger/*.parquet"))]


def _read(path: Path) -> dict[str, Any]:
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise JobError(path, f"is damaged: {error}", remedy="remove it; the video is then done again") from error
    return rows[0]


def _row_path(root: Path, fingerprint: str) -> Path:
    return root / "ledger" / f"{fingerprint}.parquet"
