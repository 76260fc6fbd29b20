"""A client of the HTTP service, for programs and for `troupe submit`: what it begins it brings to its end.

A submission whose answer was lost is sent again without making a second task, waiting goes on while the server is away,
and a download goes on where it broke. Usage:

    with Client("https://studio.example", token) as studio:
        task = studio.submit(Path("dance.mp4"), {"preset": "quality"})
        task = studio.wait(task.id)
        studio.download(task, Path("dance-restaged.mp4"))
"""

from __future__ import annotations

import asyncio
import io
import os
import time
import unicodedata
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from pydantic import ValidationError

from cluster.errors import UsageError
from cluster.service_settings import DEFAULT_SERVER
from serve.client.asking import Answer, Asker, Fill, is_url
from serve.client.downloading import fetched
from serve.client.refusals import NO_TROUPE, ServiceError
from serve.schemas import TaskView
from serve.store.values import TaskState, is_id

Moved = Callable[[int, int], None]
"""Told how many bytes have gone over the wire, and how many there are. Called from another thread now and then."""

_PAGE = 100
#: Looks at tasks, a second: far below what a token may ask, whatever the number of tasks.
_LOOKS_PER_SECOND = 4.0


class Client:
    """Tasks of one server. For one thread, outside of any event loop.

    Every method may raise ServiceError (the server refuses, is none of Troupe's, or was away for longer than
    `patience_s` at a stretch); where the request itself cannot be, it is a UsageError too.

    Args:
        server: address; by default TROUPE_SERVER, else the one of `troupe up` on this machine.
        token: by default TROUPE_TOKEN, else none is sent.
        patience_s: seconds that the server may be away, restarting or too busy before it is given up. A full queue, or
            a token that has all the tasks that it may have, is waited for until there is room. A server that never
            answered is given up at once.
        away: told why, when the server did not answer twice in a row and is asked again.
        environ: the environment.

    Raises:
        UsageError: the address or the token cannot be one.
    """

    def __init__(
        self,
        server: str | None = None,
        token: str | None = None,
        *,
        patience_s: float = 300.0,
        away: Callable[[str], None] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        address = server or environ.get("TROUPE_SERVER") or DEFAULT_SERVER
        self._asker = Asker(address, environ.get("TROUPE_TOKEN", "") if token is None else token, patience_s, away)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        self._runner.run(self._asker.close())
        self._runner.close()

    @property
    def server(self) -> str:
        """The server's address."""
        return self._asker.server

    def submit(
        self,
        video: Path | str,
        choices: Mapping[str, str | float | bool] | None = None,
        *,
        background: Path | None = None,
        mask: Path | None = None,
        webhook: str | None = None,
        sent: Moved | None = None,
    ) -> TaskView:
        """Submits a video, once, however often it has to be sent.

        Args:
            video: a file, which is streamed from the disk, or an http(s) URL, from which the server fetches it.
            choices: as `POST /v1/tasks` takes them: `preset`, `upscale`, `target`, `matte`, ….
            background: an image or video behind the person; a colour or a category is among the choices.
            mask: mask video, for `matte` `given` or `auto`.
            webhook: URL that the server tells of the task's end.
            sent: told how much of the files was sent.

        Raises:
            UsageError: a file is not there, or files are to go along with a URL.
        """
        said = {name: value for name, value in (choices or {}).items() if value is not None}
        if webhook:
            said["webhook"] = webhook
        if is_url(video):
            if background or mask:
                raise UsageError(video, "is fetched by the server, which takes no files with it", remedy="send a file")
            fill: Fill = lambda *_: {"json": {"video_url": str(video), **said}}  # noqa: E731
            thing = str(video).partition("?")[0]
        else:
            files = {"file": Path(video), "background": background, "mask": mask}
            given = {name: path for name, path in files.items() if path is not None}
            for path in given.values():
                if not path.is_file():
                    raise UsageError(path, "is not a file" if path.exists() else "does not exist")
            fill = _form(said, given, sent or _nobody)
            thing = _shown(Path(video))
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return self._task(self._ask("POST", "v1/tasks", thing=thing, headers=headers, fill=fill))

    def task(self, task_id: str) -> TaskView:
        """A task as it is now."""
        return self._task(self._ask("GET", _path(task_id), thing=f"task {task_id}"))

    def tasks(self, *, state: TaskState | None = None, limit: int | None = None) -> Iterator[TaskView]:
        """The token's own tasks, newest first.

        Args:
            state: only those in this state.
            limit: most tasks.
        """
        left, cursor = limit, None
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            params = {"limit": str(size)} | ({"state": state.value} if state else {})
            answer = self._ask("GET", "v1/tasks", params=params | ({"cursor": cursor} if cursor else {}))
            found = answer.body.get("tasks")
            if not isinstance(found, list):
                raise self._no_troupe()
            page = [self._view(each) for each in found]
            yield from page
            left = None if left is None else left - len(page)
            cursor = answer.body.get("next")
            if not cursor:
                return

    def cancel(self, task_id: str) -> TaskView:
        """Cancels a task: at once while it is queued, within seconds while it runs."""
        return self._task(self._ask("DELETE", _path(task_id), thing=f"task {task_id}"))

    def retry(self, task_id: str) -> TaskView:
        """Queues a failed or cancelled task again."""
        answer = self._ask("POST", f"{_path(task_id)}/retry", thing=f"task {task_id}", done_if_lost=("task_state",))
        return self._task(answer) if answer.body else self.task(task_id)

    def purge(self, task_id: str) -> None:
        """Removes a task that has ended, with its result."""
        self.task(task_id)  # after this one, that it is not there means that it was removed, by whichever attempt
        try:
            self._ask("DELETE", _path(task_id), thing=f"task {task_id}", params={"purge": "true"})
        except ServiceError as error:
            if error.code != "no_task":
                raise

    def follow(
        self, task_ids: Sequence[str], *, gone: Callable[[str, ServiceError], None] | None = None
    ) -> Iterator[TaskView]:
        """Looks at tasks in turn until all have ended: each that changed, at last as it ended.

        Args:
            task_ids: each is looked at once a second, or less often when there are more than a few.
            gone: told of a task that is not there any more; without it that is raised.
        """
        return (task for task in self._looks(task_ids, gone) if task is not None)

    def _looks(
        self, task_ids: Sequence[str], gone: Callable[[str, ServiceError], None] | None = None
    ) -> Iterator[TaskView | None]:
        """Each look of `follow`: None where nothing changed."""
        waiting, tags = deque(dict.fromkeys(task_ids)), dict[str, str]()
        while waiting:
            task_id = waiting.popleft()
            headers = {"If-None-Match": tags[task_id]} if task_id in tags else {}
            ended = False
            try:
                answer = self._ask("GET", _path(task_id), thing=f"task {task_id}", headers=headers)
            except ServiceError as error:
                if gone is None or error.code != "no_task":
                    raise
                gone(task_id, error)
                continue
            task = None
            if answer.status != 304:
                task = self._task(answer)
                tags[task_id] = answer.headers.get("ETag", "")
                ended = task.state.ended
            yield task
            if not ended:
                waiting.append(task_id)
                time.sleep(max(1 / len(waiting), 1 / _LOOKS_PER_SECOND))

    def wait(
        self, task_id: str, *, seconds: float | None = None, seen: Callable[[TaskView], None] | None = None
    ) -> TaskView:
        """The task once it has ended: done, failed or cancelled.

        Args:
            task_id: its id.
            seconds: longest wait, a server that is away apart; None for as long as it takes.
            seen: told of the task whenever it changed.

        Raises:
            ServiceError: it has not ended by then (code `still_running`).
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        for task in self._looks([task_id]):
            if task is not None:
                if seen is not None:
                    seen(task)
                if task.state.ended:
                    return task
            if deadline is not None and time.monotonic() > deadline:
                break
        reason = f"has not ended within {seconds:g} s"
        raise ServiceError(f"task {task_id}", reason, remedy="it goes on; wait longer", code="still_running")

    def download(
        self, task: TaskView | str, target: Path, *, overwrite: bool = False, moved: Moved | None = None
    ) -> Path:
        """Downloads a task's result, goes on where it broke, and checks it against the task's SHA-256.

        Until it is whole it lies beside `target` under a hidden name, where a later call goes on.

        Args:
            task: one that is done, or its id.
            target: the file to write.
            overwrite: replace a file that is there.
            moved: told how much is there.

        Raises:
            UsageError: `target` is there, its folder is not, or another process is downloading it.
            ServiceError: the task is not done, its result is not kept any more, or is not what the task made.
        """
        found = self.task(task) if isinstance(task, str) else task
        if found.result is None:
            reason = f"is {found.state}, so there is no result"
            raise ServiceError(f"task {found.id}", reason, remedy="wait until it is done", code="not_done")
        return self._runner.run(fetched(self._asker, found.id, found.result, target, overwrite, moved or _nobody))

    def _ask(self, method: str, path: str, **options: Any) -> Answer:
        return self._runner.run(self._asker.ask(method, path, **options))

    def _task(self, answer: Answer) -> TaskView:
        return self._view(answer.body)

    def _view(self, document: object) -> TaskView:
        try:
            return TaskView.model_validate(document)
        except ValidationError as error:
            raise self._no_troupe() from error

    def _no_troupe(self) -> ServiceError:
        return ServiceError(self.server, "does not answer as this version of Troupe does", remedy=NO_TROUPE)


def _path(task_id: str) -> str:
    """Where a task is; a text that is no id never becomes part of a path."""
    if not is_id(task_id):
        raise UsageError(f"task {task_id!r}", "is not an id", remedy="`troupe tasks list` shows ids")
    return f"v1/tasks/{task_id}"


def _nobody(_done: int, _total: int) -> None:
    return


def _form(fields: Mapping[str, object], files: Mapping[str, Path], sent: Moved) -> Fill:
    """A form of fields and files, made anew for each attempt."""

    def fill(stack: ExitStack, alive: Callable[[], None]) -> dict[str, aiohttp.FormData]:
        form = aiohttp.FormData(quote_fields=False)  # names as UTF-8, not percent-encoded
        for name, value in fields.items():
            form.add_field(name, _text(value))
        opened = {name: stack.enter_context(_open(path)) for name, path in files.items()}
        total = sum(os.fstat(file.fileno()).st_size for file in opened.values())
        done = 0

        def read(count: int) -> None:
            nonlocal done
            done += count
            sent(done, total)
            alive()

        for name, file in opened.items():
            form.add_field(name, _Read(file, read), filename=_shown(files[name]), content_type=_BYTES)
        return {"data": form}

    return fill


_BYTES = "application/octet-stream"  # what a file is, its content says


class _Read(io.BufferedReader):
    """A file that tells how much was read of it."""

    def __init__(self, file: io.FileIO, told: Callable[[int], None]) -> None:
        super().__init__(file)
        self._told = told

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self._told(len(piece))
        return piece


def _open(path: Path) -> io.FileIO:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise UsageError(path, error.strerror or str(error), remedy="check the file and its permissions") from error


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _shown(path: Path) -> str:
    """A file's name as a header can hold it."""
    name = os.fsencode(path.name).decode("utf-8", "replace")
    return "".join("_" if unicodedata.category(each)[0] == "C" else each for each in name)
