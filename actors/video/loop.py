"""Backgrounds that repeat without a seam: a video's tail is cross-faded into its head; a still becomes a clip."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from actors.video import image
from actors.video.background import crop_to_cover
from actors.video.decode import Decoder
from actors.video.encode import EncoderSettings, SegmentWriter
from actors.video.join import join
from actors.video.limits import Limits
from actors.video.scan import Scan, scan
from actors.video.yuv import YuvConverter
from cluster.errors import MediaError, UsageError

#: Quality above the usual: the loop is decoded and encoded once more in every result it is used in.
LOOP_SETTINGS = EncoderSettings(crf=16)

STILL_RATE = Fraction(25)


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop that was written: its length, size, and how many of its frames are blended."""

    path: Path
    frames: int
    blended: int
    seconds: float
    width: int
    height: int


@dataclass(frozen=True, slots=True, eq=False)
class _Take:
    """Frames to encode with their times; `pts` has one more entry than there are frames, the end of the last."""

    frames: Iterator[NDArray[np.uint8]]
    pts: NDArray[np.int64]
    time_base: Fraction
    rate: Fraction
    blended: int


def make_loop(
    source: Path,
    target: Path,
    *,
    seconds: float | None,
    fade_seconds: float,
    size: tuple[int, int] | None,
    limits: Limits,
    settings: EncoderSettings = LOOP_SETTINGS,
) -> Loop:
    """Write `source` to `target`, an mp4 without sound that can be repeated.

    With n frames of which k fall in the fade, frame i < k becomes (1-w) F[n-k+i] + w F[i] with the `fade_weight` w;
    then F[k] to F[n-k-1] follow. The loop is shorter than the source by the fade.

    Args:
        source: a video or a still image.
        seconds: length of the loop at most; None takes all of a video. A still needs it.
        fade_seconds: length of the cross-fade, cut to half of what there is; 0 for none.
        size: even width and height, covered; None keeps the source's, made even.
        limits: bounds on the source.

    Raises:
        UsageError: lengths that cannot be.
        MediaError: the source is refused or has a single frame.
    """
    if fade_seconds < 0 or (seconds is not None and seconds <= 0):
        raise UsageError("loop", f"{seconds} seconds with a fade of {fade_seconds} cannot be")
    still = image.read_image(source, limits) if source.suffix.lower() in image.SUFFIXES else None
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=target.parent, prefix=".loop-")))
        if still is not None:
            have = still.shape[1], still.shape[0]
            take = _still(source, still, seconds)
        else:
            found = scan(source, limits, workdir=work)
            have = found.info.width, found.info.height
            decoders = [stack.enter_context(Decoder(found, limits)) for _ in range(2)]
            take = _faded(found, decoders[0], decoders[1], seconds, fade_seconds)
        width, height = size or (have[0] & ~1, have[1] & ~1)
        return _write(take, target, work, width, height, settings)


def _still(source: Path, picture: NDArray[np.uint8], seconds: float | None) -> _Take:
    if seconds is None:
        raise UsageError(source.name, "a still image has no length", remedy="say how many seconds the clip shall last")
    count = max(1, round(seconds * STILL_RATE))
    return _Take((picture for _ in range(count)), np.arange(count + 1, dtype=np.int64), 1 / STILL_RATE, STILL_RATE, 0)


def _faded(found: Scan, body: Decoder, tail: Decoder, seconds: float | None, fade_seconds: float) -> _Take:
    """Frames and times of the loop; the two decoders read the same file at two places."""
    starts = np.append(found.pts, found.pts[-1] + found.last_duration) - found.pts[0]
    if len(found) < 2:
        raise MediaError(found.path.name, "has a single frame", remedy="give a longer video or a still image")
    tick = float(found.info.time_base)
    used = len(found)
    if seconds is not None:
        used = max(2, int(np.searchsorted(starts[:-1] * tick, seconds + fade_seconds)))
    fade = min(int(np.searchsorted(starts[:-1] * tick, fade_seconds)), used // 2)

    def frames() -> Iterator[NDArray[np.uint8]]:
        over = tail.frames(used - fade, used) if fade else iter(())
        for i, frame in enumerate(body.frames(0, used - fade)):
            if i < fade:
                weight = fade_weight(i, fade)
                frame = np.asarray(cv2.addWeighted(next(over), 1 - weight, frame, weight, 0), np.uint8)
            yield frame

    return _Take(frames(), starts[: used - fade + 1], found.info.time_base, found.info.rate, fade)


def fade_weight(index: int, count: int) -> float:
    """Share of the head in blended frame `index` of `count`: smoothstep, nearly flat at both ends.

    A straight ramp would add a part of the difference between tail and head to the very step at the seam.
    """
    s = (index + 1) / (count + 1)
    return s * s * (3 - 2 * s)


def _write(take: _Take, target: Path, work: Path, width: int, height: int, settings: EncoderSettings) -> Loop:
    convert = YuvConverter(width, height)
    segment = work / "loop.mp4"
    with SegmentWriter(segment, width, height, take.rate, take.time_base, settings) as writer:
        for frame, pts in zip(take.frames, take.pts[:-1], strict=True):
            writer.write(convert.convert(crop_to_cover(frame, width, height)), int(pts))
    join(
        [segment],
        target,
        pts=take.pts[:-1],
        time_base=take.time_base,
        last_duration=int(take.pts[-1] - take.pts[-2]),
        sound=None,
    )
    return Loop(target, len(take.pts) - 1, take.blended, float(take.pts[-1] * take.time_base), width, height)
