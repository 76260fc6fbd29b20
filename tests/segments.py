"""Segments and finals for tests, made from drawn frames that carry their number."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from actors.video.encode import EncoderSettings, SegmentWriter
from actors.video.join import Joined, join
from actors.video.sound import Sound
from actors.video.yuv import YuvConverter
from tests.media import draw, has_flash, number

FAST = EncoderSettings(preset="veryfast", crf=20, threads=1)
SIZE = 160, 96


def write_segments(
    folder: Path,
    lengths: Sequence[int],
    pts: NDArray[np.int64],
    time_base: Fraction,
    *,
    rate: Fraction = Fraction(25),
    settings: EncoderSettings = FAST,
    flashes: frozenset[int] = frozenset(),
) -> list[Path]:
    """One file for each length, with frames numbered through; frames in `flashes` have a lit strip."""
    convert = YuvConverter(*SIZE)
    files: list[Path] = []
    index = 0
    for length in lengths:
        files.append(folder / f"segment-{len(files)}.mp4")
        with SegmentWriter(files[-1], *SIZE, rate, time_base, settings) as writer:
            for _ in range(length):
                writer.write(convert.convert(draw(index, *SIZE, flash=index in flashes)), int(pts[index]))
                index += 1
    return files


def write_final(
    folder: Path,
    lengths: Sequence[int],
    pts: NDArray[np.int64],
    time_base: Fraction,
    last_duration: int,
    sound: Sound | None = None,
    flashes: frozenset[int] = frozenset(),
) -> tuple[Path, Joined]:
    """Segments, joined."""
    folder.mkdir(exist_ok=True)
    files = write_segments(folder, lengths, pts, time_base, flashes=flashes)
    final = folder / "final.mp4"
    return final, join(files, final, pts=pts, time_base=time_base, last_duration=last_duration, sound=sound)


def read_frames(path: Path) -> list[tuple[Fraction, int]]:
    """Time and number of every frame."""
    with av.open(str(path)) as container:  # noqa: TID251
        return [
            (frame.pts * frame.time_base, number(frame.to_ndarray(format="rgb24")))
            for frame in container.decode(video=0)
        ]


def source_times(path: Path) -> tuple[NDArray[np.int64], Fraction, frozenset[int]]:
    """Times of a clip's frames, their time base, and which of them flash; by index where the file has no times."""
    with av.open(str(path)) as container:  # noqa: TID251
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        pts = [frame.pts for frame in frames]
        if any(b <= a for a, b in pairwise(pts)):
            pts = list(range(len(frames)))
        flashes = frozenset(i for i, f in enumerate(frames) if has_flash(f.to_ndarray(format="rgb24")))
        return np.array(pts, np.int64), stream.time_base, flashes
