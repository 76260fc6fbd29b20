"""mp4 files that this project writes itself: made without time stamps, opened without the input limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer


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
