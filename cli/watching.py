"""What a person or a program sees of tasks on a server: bars on a terminal, plain lines elsewhere, JSON lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cli.remote import how_to_go_on
from cluster.errors import TroupeError
from jobs.display import Display

if TYPE_CHECKING:
    from serve.client import Client
    from serve.schemas import TaskView

_LINE_SECONDS = 5.0
_MANY = 8  # tasks; of more, those that wait in the queue are not shown


@dataclass(frozen=True, slots=True)
class Awaited:
    """A task that somebody waits for: its name for people, and the file that its result becomes, if any."""

    id: str
    name: str
    target: Path | None


class Watch(Display):
    """Shows tasks of a server.

    Args:
        mode: as of `Display`.
    """

    def __init__(self, mode: Literal["bars", "lines", "json"]) -> None:
        super().__init__(mode)
        self.server = ""
        self.output: Path | None = None
        #: Submitted, and not at its end as far as is known here.
        self.going: dict[str, Awaited] = {}
        self._progress: Progress | None = None
        self._bars_by_name: dict[str, TaskID] = {}
        self._shown: dict[str, float] = {}

    def interrupted(self) -> None:
        """The last line of a command that was interrupted: what goes on without it, and how to see its end."""
        going = how_to_go_on(self.server, list(self.going), self.output) if self.going else "no task is under way"
        self.last_word(f"interrupted; {going}")

    def left_alone(self) -> None:
        """After an error: what goes on all the same."""
        if self.going:
            self.note(how_to_go_on(self.server, list(self.going), self.output))

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Bars, on a terminal, while the block lasts."""
        if self.mode != "bars":
            yield
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[stage]}", markup=False),
        )
        with Progress(*columns, console=self._console, transient=True) as self._progress:
            try:
                yield
            finally:
                self._bars_by_name.clear()
        self._progress = None

    def moving(self, name: str, stage: str) -> Callable[[int, int], None]:
        """Shows bytes on their way; what it returns is told how many, from any thread."""

        def moved(done: int, total: int) -> None:
            self._show(name, stage, done, total, f"{done / 1e6:.1f}/{total / 1e6:.1f} MB")

        return moved

    def seen(self, task: TaskView, name: str) -> None:
        """Shows where a task is."""
        progress = task.progress
        if task.state == "queued" and len(self.going) > _MANY:
            return
        if progress is None or task.state != "running":
            behind = f", {task.ahead} before it" if task.ahead else ""
            self._show(name, f"{task.state}{behind}", 0, 0, "")
            return
        speed = f", {progress.fps:.1f} fps" if progress.fps else ""
        stage = progress.stage + (f", paused: {progress.paused}" if progress.paused else "")
        amount = f"{progress.frames}/{progress.total} frames{speed}" if progress.total else ""
        self._show(name, stage, progress.frames, progress.total, amount)

    def counted(self, done: int, total: int) -> None:
        """How many of several tasks have ended, as a bar of its own."""
        if self._progress is not None and total > 1:
            self._show(f"{total} videos", "", done, total, f"{done}/{total} ended")

    def done(self, task: TaskView, awaited: Awaited) -> None:
        """A task that is done, and its result downloaded if that was wanted."""
        self.hide(awaited.name)
        path = None if awaited.target is None else str(awaited.target)
        self.emit("done", input=awaited.name, output=path, task=task.model_dump(mode="json"))
        if self.mode == "json" or task.result is None:
            return
        where = "" if path is None else f" → {escape(path)}"
        self._console.print(f"[green]done[/green]    {escape(awaited.name)}{where} ({task.result.frames} frames)")
        for notice in task.result.notices:
            self._console.print(f"        {notice}", markup=False)

    def ended_badly(self, name: str, error: str) -> None:
        """A task that did not get to its end."""
        self.hide(name)
        self.failed(name, error if error.startswith(f"{Path(name).name}: ") else f"{name}: {error}")

    def hide(self, name: str) -> None:
        """Nothing more is shown of it for now."""
        if self._progress is not None and name in self._bars_by_name:
            self._progress.remove_task(self._bars_by_name.pop(name))

    def _show(self, name: str, stage: str, done: int, total: int, amount: str) -> None:
        if self._progress is not None:
            if name not in self._bars_by_name:
                self._bars_by_name[name] = self._progress.add_task(name, total=None, amount="", stage="")
            bar = self._bars_by_name[name]
            self._progress.update(bar, completed=done, total=total or None, amount=amount, stage=stage)
            return
        now, key = time.monotonic(), f"{name}\0{stage}"
        if now - self._shown.get(key, -_LINE_SECONDS) < _LINE_SECONDS:
            return
        self._shown[key] = now
        self.emit("progress", input=name, stage=stage, done=done, of=total)
        if self.mode == "lines":
            self._console.print(f"{name}: {stage}{f', {amount}' if amount else ''}", markup=False)


def follow_to_the_end(client: Client, watch: Watch, *, overwrite: bool) -> None:
    """Shows the tasks that are going until all have ended, and downloads the results that are wanted.

    What fails is shown and does not stop the others.

    Raises:
        ServiceError: the server was away for too long.
    """
    awaited = dict(watch.going)

    def gone(task_id: str, error: TroupeError) -> None:
        watch.ended_badly(watch.going.pop(task_id).name, str(error))

    with watch.showing():
        for task in client.follow(list(awaited), gone=gone):
            watch.counted(len(awaited) - len(watch.going), len(awaited))
            each = awaited[task.id]
            if task.state.ended:
                _end(client, watch, task, each, overwrite)
                watch.going.pop(task.id, None)
            else:
                watch.seen(task, each.name)


def _end(client: Client, watch: Watch, task: TaskView, awaited: Awaited, overwrite: bool) -> None:
    if task.state != "done":
        detail = task.error.detail if task.error else f"is {task.state}"
        watch.ended_badly(awaited.name, f"{detail} (task {task.id})")
        return
    try:
        if awaited.target is not None:
            moved = watch.moving(awaited.name, "downloading")
            client.download(task, awaited.target, overwrite=overwrite, moved=moved)
    except TroupeError as error:
        watch.ended_badly(awaited.name, f"{error} (task {task.id})")
        return
    watch.done(task, awaited)
