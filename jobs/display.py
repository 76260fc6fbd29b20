"""What a person or a program sees of a running job: bars on a terminal, plain lines elsewhere, JSON lines on demand."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

# The display is up before Ray is imported, which must wait for the token (`cluster.session.use_token`).
if TYPE_CHECKING:
    from jobs.batch import Outcome
    from jobs.progress import Reporter, VideoProgress
    from jobs.task import VideoTask

_POLL_SECONDS = 0.5
#: Plain lines are for logs: one every few seconds, and only when something moved.
_LINE_SECONDS = 5.0


class Display:
    """Shows a job's course.

    Args:
        mode: `bars` on a terminal, `lines` in a log, `json` for machines (one object a line on standard output).
    """

    def __init__(self, mode: Literal["bars", "lines", "json"]) -> None:
        self.mode = mode
        self.failures: list[str] = []
        self._told: set[tuple[str, str]] = set()
        # This very stream: while Ray runs, `sys.stdout` is another (`cluster.session.messages_on_stderr`).
        self._out = sys.stdout
        self._console = Console(file=sys.stderr if mode == "json" else self._out, highlight=False, soft_wrap=True)

    @classmethod
    def choose(cls, *, as_json: bool) -> Display:
        """JSON when asked for, bars on a terminal, else lines."""
        return cls("json" if as_json else "bars" if sys.stdout.isatty() else "lines")

    def emit(self, event: str, **values: Any) -> None:
        """One JSON object on standard output, in `json` mode only."""
        if self.mode == "json":
            print(json.dumps({"event": event, **values}, default=str), file=self._out, flush=True)

    def note(self, text: str) -> None:
        """A line about the job as a whole."""
        self.emit("note", text=text)
        if self.mode != "json":
            self._console.print(text, markup=False)

    def interrupted(self) -> None:
        """The last line of a job that was interrupted; the terminal is left as it was found."""
        self._console.show_cursor(True)
        self.note("interrupted; run the same command again to go on where it stopped")
        self._out.flush()

    def failed(self, name: str, error: str) -> None:
        """An input that ended in an error; listed again by `summary`."""
        self.failures.append(error)
        self.emit("failed", input=name, error=error)
        if self.mode != "json":
            self._console.print(f"[red]failed[/red]  {escape(error)}")

    def summary(self, total: int, output: Path) -> int:
        """The last lines: how many of the inputs are done, where, and which failed; returns the number of failures."""
        failed = len(self.failures)
        self.emit("summary", total=total, done=total - failed, failed=failed, output=str(output))
        if self.mode != "json":
            self._console.print(f"{total - failed} of {total} videos done, in {output}", markup=False)
            if failed > 1:
                self._console.print(f"{failed} failed:", markup=False)
                for error in self.failures:
                    self._console.print(f"    {error}", markup=False)
        return failed

    def ended(self, outcome: Outcome) -> None:
        """A video that is done or failed."""
        name = outcome.task.source.name
        if outcome.status == "failed":
            self.failed(str(outcome.task.source), outcome.error)
            return
        row = outcome.row
        self.emit("done", **{key: row[key] for key in ("input", "output", "frames", "notices", "retries")})
        if self.mode != "json":
            self._console.print(
                f"[green]done[/green]    {escape(name)} → {escape(row['output'])} ({row['frames']} frames)"
            )
            for notice in row["notices"]:
                self._console.print(f"        {escape(notice)}")

    @contextmanager
    def following(self, reporter: Reporter, tasks: Sequence[VideoTask]) -> Iterator[None]:
        """Shows the board's state until the block ends."""
        stop = threading.Event()
        names = {task.fingerprint: task.source.name for task in tasks}
        follow = self._bars if self.mode == "bars" else self._lines
        thread = threading.Thread(target=follow, args=(reporter, names, stop), name="display", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(5)
            self._tell_notes(reporter.snapshot(), names)

    def _tell_notes(self, board: dict[str, VideoProgress], names: dict[str, str]) -> None:
        """What lanes noted of their videos since the last time: calls that are repeated, other code."""
        for key, state in board.items():
            for note in state.notes:
                if (key, note) not in self._told:
                    self._told.add((key, note))
                    self.note(f"{names[key]}: {note}")

    def _lines(self, reporter: Reporter, names: dict[str, str], stop: threading.Event) -> None:
        pace = _Pace()
        shown, before = 0.0, -1
        while not stop.wait(_POLL_SECONDS):
            board = reporter.snapshot()
            self._tell_notes(board, names)
            done, total = _sums(board)
            now = time.monotonic()
            if not total or done == before or now - shown < _LINE_SECONDS:
                continue
            shown, before = now, done
            rate = pace.rate(done)
            eta = _eta(board, len(names), rate)
            running = [names[key] for key, state in board.items() if state.stage == "running"]
            self.emit("progress", frames=done, of=total, fps=round(rate, 2), eta_s=eta, running=running)
            if self.mode == "lines":
                speed = "" if eta is None else f", {rate:.1f} fps, {eta:.0f} s left"
                at_work = f": {', '.join(running)}" if running else ""
                self._console.print(f"{done}/{total} frames{speed}{at_work}", markup=False)

    def _bars(self, reporter: Reporter, names: dict[str, str], stop: threading.Event) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[fps]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[stage]}"),
        )
        pace = _Pace()
        paces: dict[str, _Pace] = {}
        bars: dict[str, TaskID] = {}
        with Progress(*columns, console=self._console, transient=True) as progress:
            whole = progress.add_task(f"{len(names)} videos", total=None, fps="", stage="")
            while not stop.wait(_POLL_SECONDS):
                board = reporter.snapshot()
                self._tell_notes(board, names)
                for key, state in board.items():
                    if key not in bars:
                        bars[key], paces[key] = progress.add_task(names[key], total=None, fps="", stage=""), _Pace()
                    progress.update(
                        bars[key],
                        total=state.frames or None,
                        completed=min(state.done, state.frames),
                        stage=state.stage,
                        fps=f"{paces[key].rate(state.done):.1f} fps" if state.stage == "running" else "",
                        # Of hundreds of videos, those at work; the whole has a bar of its own.
                        visible=state.stage in ("planning", "running", "assembling"),
                    )
                done, total = _sums(board)
                progress.update(whole, total=total or None, completed=done, fps=f"{pace.rate(done):.1f} fps")


class _Pace:
    """Frames a second since the first ones came: neither start-up nor what an earlier run did counts."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def rate(self, done: int) -> float:
        now = time.monotonic()
        if self._start is None or done < self._start[1]:
            self._start = (now, done) if done else None
            return 0.0
        return (done - self._start[1]) / max(now - self._start[0], _POLL_SECONDS)


def _sums(board: dict[str, VideoProgress]) -> tuple[int, int]:
    return sum(min(s.done, s.frames) for s in board.values()), sum(s.frames for s in board.values())


def _eta(board: dict[str, VideoProgress], videos: int, rate: float) -> float | None:
    """Seconds left, videos that are not planned yet taken as average ones; None before the first frame."""
    planned = [state for state in board.values() if state.frames]
    if not planned or rate <= 0:
        return None
    done, total = _sums(board)
    return round((total / len(planned) * videos - done) / rate, 1)
