"""Encoding segments: reproducible H.264 in mp4, each with closed GOPs of its own, so that they join as they are."""

from __future__ import annotations

import functools
import math
import re
from collections import deque
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
from av import VideoFrame
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc
from av.video.stream import VideoStream

from actors.video.own import create_mp4, mp4_timescale
from actors.video.yuv import MATRIX_BT709
from cluster.errors import JobError, UsageError
from cluster.files import partial_path, publish, sha256_of

X264_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
NVENC_PRESETS = ("p1", "p2", "p3", "p4", "p5", "p6", "p7")

#: mp4 stores the time between two frames in 32 bits, and the muxer refuses what does not fit in 31.
MAX_GAP = 2**31 - 1


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """How the result is encoded; all of it belongs in a segment's fingerprint.

    Attributes:
        codec: `x264`, or `nvenc` on a card that has the encoder (see `probe_nvenc`).
        crf: constant quality, 0..51, lower is better; NVENC reads it as `cq`.
        preset: speed against size: x264's `ultrafast`..`veryslow`, NVENC's `p1`..`p7`.
        threads: x264's threads. Each count gives its own stream, so it is fixed here and never follows the machine.
        gop_seconds: longest time between two keyframes.
    """

    codec: Literal["x264", "nvenc"] = "x264"
    crf: int = 18
    preset: str = "medium"
    threads: int = 2
    gop_seconds: float = 2.0

    def __post_init__(self) -> None:
        presets = {"x264": X264_PRESETS, "nvenc": NVENC_PRESETS}.get(self.codec)
        if presets is None:
            raise UsageError(f"codec {self.codec!r}", "is not an encoder", remedy="use x264 or nvenc")
        if self.preset not in presets:
            raise UsageError(
                f"preset {self.preset!r}", f"is not one of {self.codec}", remedy=f"use one of {', '.join(presets)}"
            )
        if not 0 <= self.crf <= 51:
            raise UsageError(f"crf {self.crf}", "is outside 0..51")
        if not 1 <= self.threads <= 128:
            raise UsageError(f"{self.threads} encoder threads", "is outside 1..128")
        if not self.gop_seconds > 0:
            raise UsageError(f"gop_seconds {self.gop_seconds}", "must be above 0")

    @property
    def reproducible(self) -> bool:
        """Whether equal frames give equal bytes."""
        return self.codec == "x264"

    def to_json(self) -> dict[str, Any]:
        """Plain values, for fingerprints and the ledger."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A finished segment file: frames and bytes in it, and its hash."""

    frames: int
    nbytes: int
    sha256: str


class SegmentWriter:
    """Writes one segment, beside its name until `close` publishes it.

    Times: the first frame's pts becomes 0 in the file; the file's ticks divide the time base, so that every time
    comes back exactly. Only constant-quality rate control is used: it has no memory that would cross segments.

    Used as a context manager it publishes when the block succeeds and leaves nothing when it raises.
    """

    def __init__(
        self, path: Path, width: int, height: int, rate: Fraction, time_base: Fraction, settings: EncoderSettings
    ) -> None:
        """
        Args:
            path: the segment file to make.
            width, height: even output size.
            rate: frames per second; for rate control only, equal for all segments of a video.
            time_base: seconds per tick of the pts given to `write`, any fraction whose denominator fits in 31 bits.
        """
        if width % 2 or height % 2:
            raise ValueError(f"4:2:0 needs even sizes, not {width}x{height}")
        if rate <= 0 or time_base <= 0 or time_base.denominator > MAX_GAP:
            raise ValueError(f"rate {rate} or time base {time_base} cannot be written")
        self.path = path
        timescale = mp4_timescale(time_base)
        self._time_base = time_base
        self._tick = Fraction(1, timescale)
        self._scale = int(time_base * timescale)  # ticks of the file for one of the source
        self._keys = KeyframeClock(settings.gop_seconds, rate)
        self._partial = partial_path(path)
        self._frames = 0
        self._first = self._last = 0
        self._out = create_mp4(self._partial, {"video_track_timescale": str(timescale)})
        self._stream = self._add_stream(width, height, rate, settings)
        self._done = False

    def _add_stream(self, width: int, height: int, rate: Fraction, settings: EncoderSettings) -> VideoStream:
        codec, options = encoder_options(settings, self._keys.interval)
        stream = self._out.add_stream(codec, rate=rate.limit_denominator(1_000_000), options=options)
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = stream.time_base = self._tick
        context.colorspace, context.color_range = MATRIX_BT709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        context.sample_aspect_ratio = Fraction(1)
        if settings.codec == "x264":
            context.thread_count = settings.threads
        else:
            context.max_b_frames = 0
        return stream

    def write(self, frame: VideoFrame, pts: int) -> None:
        """Encode one `yuv420p` frame shown from `pts` on; pts must increase. The frame's own pts is overwritten."""
        if self._frames == 0:
            self._first = pts
        elif not 0 < (pts - self._last) * self._scale <= MAX_GAP:
            raise JobError(
                self.path.name,
                f"pts {pts} after {self._last} at time base {self._time_base} cannot be stored in mp4",
                place=f"frame {self._frames}",
            )
        self._last = pts
        frame.pts = (pts - self._first) * self._scale
        frame.time_base = self._tick
        key = self._keys.due(Fraction(frame.pts) * self._tick)
        frame.pict_type = PictureType.I if key else PictureType.NONE
        self._out.mux(self._stream.encode(frame))
        self._frames += 1

    def close(self) -> SegmentInfo:
        """Finish the file, give it its name, and say what is in it.

        Raises:
            JobError: nothing was written.
        """
        if self._frames == 0:
            self.abort()
            raise JobError(self.path.name, "the segment has no frames")
        self._done = True
        try:
            self._out.mux(self._stream.encode(None))
            self._out.close()
            info = SegmentInfo(self._frames, self._partial.stat().st_size, sha256_of(self._partial))
            publish(self._partial, self.path)
        except BaseException:
            self._partial.unlink(missing_ok=True)
            raise
        return info

    def abort(self) -> None:
        """Give up: the unfinished file is deleted."""
        if not self._done:
            self._done = True
            self._out.close()
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None:
            self.abort()
        elif not self._done:
            self.close()


class KeyframeClock:
    """Says which frames must be keyframes so that a GOP stays within its seconds where the frame rate drops.

    The encoder itself guarantees a keyframe in any `interval` consecutive frames, which is enough at the nominal
    rate. A keyframe is forced only where `interval` frames last longer than that, to within one frame.
    """

    def __init__(self, gop_seconds: float, rate: Fraction) -> None:
        self.interval = max(1, math.floor(gop_seconds * rate))
        self._gop = Fraction(gop_seconds).limit_denominator(1000)
        self._slack = 1 / rate
        self._recent: deque[Fraction] = deque(maxlen=self.interval)
        self._forced = Fraction(0)

    def due(self, seconds: Fraction) -> bool:
        """Whether the frame at `seconds` after the segment's start must be a keyframe; to be asked for each frame."""
        oldest = self._recent[0] if self._recent else seconds
        self._recent.append(seconds)
        if seconds - oldest > self._gop + self._slack and seconds - self._forced >= self._gop:
            self._forced = seconds
            return True
        return False


def encoder_options(settings: EncoderSettings, interval: int) -> tuple[str, dict[str, str]]:
    """The libavcodec encoder's name and its options, for keyframes at most `interval` frames apart."""
    if settings.codec == "x264":
        # stitchable keeps the headers of all segments equal; the thread count is repeated so that the stream's text
        # shows it.
        x264: dict[str, object] = {
            "threads": settings.threads,
            "stitchable": 1,
            "open-gop": 0,
            "keyint": interval,
            **x264_instructions(),
        }
        return "libx264", {
            "preset": settings.preset,
            "crf": str(settings.crf),
            "profile": "high",
            "forced-idr": "1",
            "x264-params": ":".join(f"{key}={value}" for key, value in x264.items()),
        }
    # No B-frames: nothing can then refer across a keyframe, and every forced one is an IDR.
    return "h264_nvenc", {
        "preset": settings.preset,
        "tune": "hq",
        "profile": "high",
        "rc": "vbr",
        "cq": str(settings.crf),
        "b": "0",
        "bf": "0",
        "b_ref_mode": "disabled",
        "forced-idr": "1",
        "g": str(interval),
    }


@functools.cache
def x264_instructions() -> dict[str, object]:
    """The instruction set that x264 is held to: AVX2 wherever the processor has it.

    x264's AVX-512 code gives another stream than all its other x86 code, and for some widths (160, 96, 32 pixels) a
    stream that depends on what the memory held before. AVX2 equals AVX and SSE4.2 byte for byte and is no slower.
    """
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except FileNotFoundError:  # not Linux: x264 finds out by itself
        return {}
    return {"asm": "avx2"} if flags and "avx2" in flags[1].split() else {}


def probe_nvenc() -> str | None:
    """Encode one frame with NVENC: None when it works on this machine, otherwise the reason why not.

    Data-centre cards have no encoder, and builds without the driver list one that fails on opening, so only trying
    tells.
    """
    try:
        codec, options = encoder_options(EncoderSettings(codec="nvenc", preset="p4"), 50)
        context = av.CodecContext.create(codec, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width, context.height, context.pix_fmt = 320, 256, "yuv420p"
        context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
        context.options = options
        frame = VideoFrame(320, 256, "yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        if not [*context.encode(frame), *context.encode(None)]:
            return "h264_nvenc gave no packet for a frame"
    except (av.FFmpegError, ValueError) as error:  # no driver, no such unit on the card; ValueError: built without it
        return f"h264_nvenc does not open: {getattr(error, 'strerror', None) or error}"
    return None
