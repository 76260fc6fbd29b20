"""MediaInfo from an open container and its first frame."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av import VideoFrame
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.video.stream import VideoStream

from actors.video.colour import HLG, PQ, has_alpha, is_full_range, matrix_of
from actors.video.info import UNKNOWN, MediaInfo, SoundInfo
from actors.video.limits import Limits, check_size

_GUESSED_RATE = Fraction(25)


def describe(container: InputContainer, stream: VideoStream, frame: VideoFrame, name: str, limits: Limits) -> MediaInfo:
    """What decoding `stream` will yield, judged by its first frame.

    Raises:
        MediaError: the displayed size is over or under the limits.
    """
    notices = []
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    square = frame.width if aspect in (0, 1) else max(2, round(frame.width * aspect / 2) * 2)
    if square != frame.width:
        notices.append(f"pixels are not square ({aspect.numerator}:{aspect.denominator}): width scaled to {square}")
    degrees = frame.rotation % 360
    rotation = round(degrees / 90) % 4 * 90
    if degrees % 90:
        notices.append(f"its rotation of {degrees} degrees was taken as {rotation}")
    if _is_mirrored(frame):
        notices.append("its mirroring by the display matrix was not applied")
    width, height = (frame.height, square) if rotation % 180 else (square, frame.height)
    check_size(frame.width, frame.height, name, limits)
    check_size(width, height, name, limits)
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    if not rate:
        notices.append(f"its frame rate is unknown: {_GUESSED_RATE} assumed where one is needed")
    hdr = frame.color_trc in (PQ, HLG)
    if hdr:
        notices.append(f"HDR ({'PQ' if frame.color_trc == PQ else 'HLG'}) tone-mapped to BT.709")
    # VP8 and VP9 carry alpha in a second stream of packets, which their decoders here pass over.
    if has_alpha(frame) or stream.metadata.get("alpha_mode") == "1":
        notices.append("its alpha channel was dropped")
    others = len([s for s in container.streams.video if s.index != stream.index])
    if others:
        notices.append(f"{others} further video or picture streams ignored")
    return MediaInfo(
        format=container.format.name,
        codec=stream.codec_context.name,
        video_index=stream.index,
        width=width,
        height=height,
        coded_width=frame.width,
        coded_height=frame.height,
        rate=Fraction(rate or _GUESSED_RATE),
        time_base=Fraction(stream.time_base or Fraction(1, 1000)),
        start=stream.start_time or 0,
        rotation=rotation,
        pixel_aspect=aspect or Fraction(1),
        pix_fmt=frame.format.name,
        bits=max(component.bits for component in frame.format.components),
        matrix=matrix_of(frame),
        full_range=is_full_range(frame),
        transfer=int(frame.color_trc),
        hdr=hdr,
        interlaced=False,
        index_times=False,
        duration=container.duration / av.time_base if container.duration else None,
        sounds=sounds_of(container),
        notices=tuple(notices),
    ).with_fields_merged(frame.interlaced_frame)


def _is_mirrored(frame: VideoFrame) -> bool:
    entry = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(entry, SideData):
        return False
    matrix = np.frombuffer(bytes(entry), np.int32).astype(np.int64)
    return bool(matrix[0] * matrix[4] < matrix[1] * matrix[3])


def sounds_of(container: InputContainer) -> tuple[SoundInfo, ...]:
    """All sound streams; the codec of one that nothing here decodes is UNKNOWN."""
    sounds = []
    for stream in container.streams.audio:
        ctx = stream.codec_context
        start = float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else None
        sounds.append(
            SoundInfo(
                index=stream.index,
                codec=ctx.name if ctx is not None else UNKNOWN,
                rate=ctx.sample_rate if ctx is not None else 0,
                channels=ctx.layout.nb_channels if ctx is not None else 0,
                layout=ctx.layout.name if ctx is not None else "",
                start=0.0 if stream.start_time == 0 else start,
                language="" if stream.language in (None, "und") else stream.language,
            )
        )
    return tuple(sounds)
