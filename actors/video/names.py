"""Which paths may be opened at all; asked before anything is read."""

from __future__ import annotations

import stat
from pathlib import Path

from actors.video.limits import Limits
from cluster.errors import MediaError


def check_path(path: Path, limits: Limits) -> Path:
    """The absolute path of a regular file that may be opened; refuses by name, kind and size without opening it."""
    text = str(path)
    for bad, what in (
        ("://", "a URL"),
        ("%", "a '%' in its path"),
        ("\n", "a line break in its path"),
        ("\0", "a NUL"),
    ):
        if bad in text:
            raise MediaError(path.name, f"refused: {what}", remedy="rename it, or give the path of a local file")
    if path.name.startswith("-"):
        raise MediaError(path.name, "refused: its name starts with '-'", remedy="rename it")
    absolute = Path.cwd() / path
    try:
        status = absolute.stat()
    except OSError as error:
        raise MediaError(path.name, f"cannot be read: {error.strerror}", place=str(path.parent)) from error
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(path.name, "is a folder", remedy="give a video file")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(path.name, "is not a regular file (a pipe, socket or device)", remedy="give a video file")
    if status.st_size == 0:
        raise MediaError(path.name, "is empty (0 bytes)", remedy="copy or download it again")
    if status.st_size > limits.max_bytes:
        raise MediaError(
            path.name,
            f"is over the size limit: {status.st_size} bytes, allowed {limits.max_bytes}",
            remedy="cut it, or raise limits.max_bytes",
        )
    return absolute
