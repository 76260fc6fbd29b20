"""What a person or a program sees of a running job: bars on a terminal, plain lines elsewhere, JSON lines on demand."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from jobs.course import PAUSED, Pace, eta, frames_of, paused_videos

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
        #: Pins that hold the job's calls, with the reason; asked while a job is followed.
        self.paused_pins: Callable[[], Mapping[str, str]] = dict
        self._told: set[tuple[str, str]] = set()
        self._paused: dict[str, str] = {}
        # This very stream: while Ray runs, `sys.stdout` is another (`cluster.session.messages_on_stderr`).
        self._out = sys.stdout
        self._console = Console(file=sys.stderr if mode == "json" else self._out, highlight=False, soft_wrap=True)

    @classmethod
    def choose(cls, *, as_json: bool) -> Self:
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
        """The last line of a job that was interrupted."""
        self.last_word("interrupted; run the same command again to go on where it stopped")

    def last_word(self, text: str) -> None:
        """A note past all buffers, for a signal comes while they are being filled too; the terminal is left as it was
        found."""
        line = json.dumps({"event": "note", "text": text}) if self.mode == "json" else text
        below_the_bars = "\n\x1b[?25h" if self.mode == "bars" else ""  # and the cursor, which they hide
        os.write(self._out.fileno(), f"{below_the_bars}{line}\n".encode())

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

    def _tell_pauses(self, board: dict[str, VideoProgress], names: dict[str, str]) -> None:
        """Who waits since the last look, and who goes on."""
        now = {names[key]: why for key, why in paused_videos(board).items()}
        now |= {f"pin {pin}": why for pin, why in self.paused_pins().items()}
        before, self._paused = self._paused, now
        for name in now.keys() - before.keys():
            self.note(f"{name}: {PAUSED}{now[name]}")
        for name in before.keys() - now.keys():
            self.note(f"{name}: goes on")

    def _lines(self, reporter: Reporter, names: dict[str, str], stop: threading.Event) -> None:
        pace = Pace()
        shown, before = 0.0, -1
        while not stop.wait(_POLL_SECONDS):
            board = reporter.snapshot()
            self._tell_notes(board, names)
            self._tell_pauses(board, names)
            done, total = frames_of(board)
            now = time.monotonic()
            if not total or done == before or now - shown < _LINE_SECONDS:
                continue
            shown, before = now, done
            rate = pace.rate(done)
            left = eta(board, len(names), rate)
            running = [names[key] for key, state in board.items() if state.stage == "running"]
            rates = {"fps": round(rate, 2), "eta_s": left}
            self.emit("progress", frames=done, of=total, **rates, running=running, paused=self._paused)
            if self.mode == "lines":
                speed = "" if left is None else f", {rate:.1f} fps, {left:.0f} s left"
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
        pace = Pace()
        paces: dict[str, Pace] = {}
        bars: dict[str, TaskID] = {}
        with Progress(*columns, console=self._console, transient=True) as progress:
            whole = progress.add_task(f"{len(names)} video{'s' * (len(names) != 1)}", total=None, fps="", stage="")
            while not stop.wait(_POLL_SECONDS):
                board = reporter.snapshot()
                self._tell_notes(board, names)
                self._tell_pauses(board, names)
                for key, state in board.items():
                    if key not in bars:
                        bars[key], paces[key] = progress.add_task(names[key], total=None, fps="", stage=""), Pace()
                    progress.update(
                        bars[key],
                        total=state.frames or None,
                        completed=min(state.done, state.frames),
                        stage=state.stage,
                        fps=f"{paces[key].rate(state.done):.1f} fps" if state.stage == "running" else "",
                        # Of hundreds of videos, those at work; the whole has a bar of its own.
                        visible=state.stage in ("planning", "running", "assembling") or key in paused_videos(board),
                    )
                done, total = frames_of(board)
                progress.update(whole, total=total or None, completed=done, fps=f"{pace.rate(done):.1f} fps")
