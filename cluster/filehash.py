"""Hashes of files, remembered while a file's size and modification time stay the same."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from cluster.files import sha256_of, written_whole


class _Remembered(BaseModel):
    size: int
    mtime_ns: int
    sha256: str


_MEMORY = TypeAdapter(dict[str, _Remembered])


class HashMemory:
    """Hashes of files that were read before, kept in one small JSON file.

    It only saves time: where the file cannot be read or written (a read-only home, a full disk) every hash is
    computed anew, and two processes that write at once lose at most each other's newest entries.

    Args:
        path: the JSON file, made when there is something to remember; None remembers nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def sha256(self, file: Path) -> str:
        """Hex SHA-256 of `file`, from memory when its size and modification time have not changed."""
        stat = file.stat()
        key = str(file.resolve())
        known = self._read().get(key)
        if known is not None and (known.size, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return known.sha256
        digest = sha256_of(file)
        self._remember(key, _Remembered(size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=digest))
        return digest

    def _read(self) -> dict[str, _Remembered]:
        if self._path is None:
            return {}
        try:
            return _MEMORY.validate_json(self._path.read_bytes())
        except (OSError, ValidationError):  # absent, unreadable or cut off: nothing is remembered
            return {}

    def _remember(self, key: str, entry: _Remembered) -> None:
        if self._path is None:
            return
        memory = self._read() | {key: entry}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self._path) as partial:
                partial.write_text(json.dumps({key: value.model_dump() for key, value in memory.items()}))
        except OSError:  # an unwritable cache costs a hash of the same file next time, nothing else
            return
