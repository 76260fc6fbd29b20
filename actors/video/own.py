"""Files that this project writes itself: written beside, published whole, and opened without the input limits."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer

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


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def open_own(path: Path) -> Iterator[InputContainer]:
    """Open a file that this project wrote; never for a user's file, which goes through `open_media`."""
    with av.open(str(path), "r", format="mp4") as container:  # noqa: TID251
        yield container


def mp4_timescale(time_base: Fraction) -> int:
    """Ticks a second in which an mp4 track holds all times of `time_base` exactly: a multiple of its denominator.

    At least 1000, because the muxer rounds the length of a lone frame to ticks and loses a frame of length 0.
    """
    return time_base.denominator * math.ceil(1000 / time_base.denominator)


def create_mp4(path: Path, options: dict[str, str]) -> OutputContainer:
    """An mp4 muxer without time stamps or version strings, so that equal input gives equal bytes.

    Args:
        path: file to write.
        options: muxer options (not codec options), e.g. `video_track_timescale`.
    """
    return av.open(str(path), "w", format="mp4", container_options={"fflags": "+bitexact", **options})  # noqa: TID251
