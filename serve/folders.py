"""The service's data folder: a folder for each task, opened without following links, kept for a time, removed whole.

    data/tasks/<id>/input/      what was uploaded or fetched, under names that the server chose
                    work/       the lane's work folder
                    result/     what the client gets
    data/trash/                 folders on their way out; emptied now and at the next start

Ids are UUIDs made here and names are the server's, so no text of a client becomes part of a path; both are checked all
the same. A folder leaves `tasks` by one rename and is deleted in `trash`, so that a half removed task is never seen.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from cluster.errors import TroupeError, UsageError

PARTS = ("input", "work", "result")

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class FolderError(TroupeError):
    """A task's file is not there, is not a plain file, or the data folder cannot be used."""


def default_data(configured: str, environ: Mapping[str, str]) -> Path:
    """The data folder: the configured one, else TROUPE_DATA, else `troupe` among the user's data (XDG)."""
    if chosen := configured or environ.get("TROUPE_DATA", ""):
        return Path(chosen).expanduser().absolute()
    home = environ.get("XDG_DATA_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "share") / "troupe"


@dataclass(frozen=True, slots=True)
class TaskFolder:
    """The three folders of one task."""

    id: str
    input: Path
    work: Path
    result: Path


@dataclass(frozen=True, slots=True)
class Ended:
    """A task whose files may go: nobody works on it any more. `finished` is an aware time."""

    id: str
    finished: datetime


class DataFolder:
    """Folders of tasks under one root.

    Raises:
        UsageError: the root cannot be made or written, or others may write to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tasks, self._trash = root / "tasks", root / "trash"
        try:
            for folder in (root, self._tasks, self._trash):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = root.stat().st_mode
            writable = os.access(root, os.W_OK | os.X_OK)
        except OSError as error:
            raise UsageError(root, error.strerror or str(error), remedy="set troupe.service.data") from error
        if not writable:
            raise UsageError(root, "cannot be written", remedy="set troupe.service.data")
        if mode & stat.S_IWOTH:
            raise UsageError(root, "can be written by every user of this machine", remedy=f"chmod o-w {root}")

    def create(self) -> TaskFolder:
        """A new task's folders, under a new id; only this user can read them."""
        task = self.of(str(uuid.uuid4()))
        task.input.parent.mkdir(mode=0o700)
        for folder in (task.input, task.work, task.result):
            folder.mkdir(mode=0o700)
        return task

    def of(self, task_id: str) -> TaskFolder:
        """The folders of a task, whether or not they are there.

        Raises:
            FolderError: it is not an id.
        """
        if not _ID.fullmatch(task_id):
            raise FolderError("task", "has an id that is none")
        folder = self._tasks / task_id
        return TaskFolder(task_id, *(folder / part for part in PARTS))

    def open_result(self, task_id: str, name: str) -> BinaryIO:
        """A file of `result`, open for reading: it can be sent to its end though the task is removed meanwhile.

        Raises:
            FolderError: there is no such plain file.
        """
        self.of(task_id)
        missing = FolderError("result", "is not there", remedy="results are kept for a time; run the task again")
        if not _NAME.fullmatch(name):
            raise missing
        opened: list[int] = []
        try:
            opened.append(os.open(self._tasks, _FOLDER))
            for part in (task_id, "result"):
                opened.append(os.open(part, _FOLDER, dir_fd=opened[-1]))
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=opened[-1])
        except OSError as error:
            raise missing from error
        finally:
            for descriptor in opened:
                os.close(descriptor)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise missing
        return os.fdopen(file, "rb")

    def remove(self, task_id: str) -> bool:
        """Remove all files of a task; False when there were none. May be called again, and by several at once."""
        folder = self.of(task_id).input.parent
        gone = self._trash / f"{task_id}-{uuid.uuid4().hex}"
        try:
            folder.rename(gone)
        except FileNotFoundError:
            return False
        _delete(gone)
        return True

    def keep_result(self, task_id: str) -> None:
        """Remove what only whoever does the task needs: its input and its work. May be called again."""
        folder = self.of(task_id)
        for part in (folder.input, folder.work):
            shutil.rmtree(part, ignore_errors=True)

    def unfinished(self) -> list[str]:
        """Ids that have more than a result."""
        return sorted(entry.name for entry in self._entries() if any((entry / part).exists() for part in PARTS[:2]))

    def sync(self, task: TaskFolder) -> None:
        """Returns when the names of what is in a new task's folder survive a power cut."""
        for folder in (task.input, task.input.parent, self._tasks):
            descriptor = os.open(folder, _FOLDER)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def ids(self) -> list[str]:
        """Ids that have a folder."""
        return sorted(entry.name for entry in self._entries())

    def size(self, task_id: str) -> int:
        """Bytes of a task's files; what vanishes while they are counted does not count."""
        return _size(self.of(task_id).input.parent)

    def free(self) -> int:
        """Bytes free on the disk."""
        return shutil.disk_usage(self.root).free

    def excess(self, ended: Collection[Ended], keep_bytes: float) -> list[str]:
        """Ids of ended tasks that are to go, the oldest first, so that the others' files are within `keep_bytes`."""
        sizes = {task.id: self.size(task.id) for task in ended}
        total, chosen = sum(sizes.values()), []
        for task in sorted(ended, key=lambda task: task.finished):
            if total <= keep_bytes:
                break
            if sizes[task.id]:
                chosen.append(task.id)
                total -= sizes[task.id]
        return chosen

    def sweep(
        self, is_known: Callable[[str], bool], *, min_age_s: float = 6 * 3600.0, clock: Callable[[], float] = time.time
    ) -> list[str]:
        """Remove what crashes left: folders that no task knows, and everything in the trash.

        Args:
            is_known: whether a task of this id exists.
            min_age_s: younger folders are left alone: an upload may fill one whose task is not yet written. Longer
                than the longest upload.

        Returns:
            Ids of the folders removed.
        """
        for entry in list(self._trash.iterdir()):
            _delete(entry)
        found = []
        for entry in self._entries():
            with suppress(FileNotFoundError):
                newest = max((entry / part).stat().st_mtime for part in ("", "input") if (entry / part).exists())
                if clock() - newest >= min_age_s and not is_known(entry.name) and self.remove(entry.name):
                    found.append(entry.name)
        return found

    def _entries(self) -> list[Path]:
        return [entry for entry in self._tasks.iterdir() if _ID.fullmatch(entry.name)]


def _delete(folder: Path) -> None:
    """Delete a tree without following a link in it (`rmtree` works with descriptors on Linux); a rest is for later."""
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError, NotADirectoryError):
        for _, _, names, descriptor in os.fwalk(folder, follow_symlinks=False):
            for name in names:
                with suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
