"""Files that are written beside their name and published whole, and their hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: Ending of a file that is still being written; whatever bears it after a crash can be deleted.
PARTIAL = ".part"


def partial_path(target: Path) -> Path:
    """A name beside `target` that no other writer has, in this process or another."""
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")


def publish(partial: Path, target: Path) -> None:
    """Give a finished file its name, so that after a power cut it is either whole or absent."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A partial path to write to; published as `target` when the block succeeds, deleted when it raises."""
    partial = partial_path(target)
    try:
        yield partial
        publish(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sha256_of(path: Path, beat: Callable[[], None] | None = None) -> str:
    """Hex digest of a file's bytes; `beat` is called before each MiB and may raise."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while True:
            if beat is not None:
                beat()
            if not (count := file.readinto(buffer)):
                return digest.hexdigest()
            digest.update(buffer[:count])
