"""The step-by-step way to restage a clip, as scripts around ffmpeg do it: every step reads files and writes files.

    clip → PNG folder → (upscaler) → PNG folder → hd.mp4 → (matting) → alpha.mp4, fgr.mp4 → overlay → final.mp4 + sound

It runs in one process, on the same networks, with a job's x264 options for every encode; PNGs are written by OpenCV at
its default, the lightest compression.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from av import VideoFrame
from av.filter import Graph

from actors.frames import Carry, FrameBatch, UInt8
from actors.video.encode import EncoderSettings
from actors.video.yuv import YuvConverter, plane
from bench.media import X264File, decoded
from bench.models import Bare

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What all steps share.

    Attributes:
        clip: the input.
        folder: where every step's files lie; empty.
        networks: upscaler and matting network, loaded.
        size: of the result.
        background: one frame of that size, `yuv420p`.
        encoder: x264's options, for every encode.
        decode_threads: of every decoder.
        batch: frames that a network is given at once.
    """

    clip: Path
    folder: Path
    networks: Bare
    size: tuple[int, int]
    background: VideoFrame
    encoder: EncoderSettings
    decode_threads: int
    batch: int

    def run(self) -> dict[str, float]:
        """All steps; returns seconds by step."""
        seconds = {}
        for name, step in (
            ("decode to PNG", self._decode),
            ("upscale folder", self._upscale),
            ("encode", self._encode),
            ("matte, encode", self._matte),
            ("overlay, encode", self._overlay),
        ):
            begun = time.perf_counter()
            step()
            seconds[name] = time.perf_counter() - begun
        return seconds

    @property
    def result(self) -> Path:
        """The finished file."""
        return self.folder / "final.mp4"

    def _decode(self) -> None:
        (self.folder / "frames").mkdir()
        for index, frame in enumerate(decoded(self.clip, self.decode_threads)):
            cv2.imwrite(str(self.folder / f"frames/{index:08d}.png"), frame.to_ndarray(format="bgr24"))

    def _upscale(self) -> None:
        (self.folder / "frames_up").mkdir()
        for paths in _grouped(sorted((self.folder / "frames").iterdir()), self.batch):
            rgb = np.stack([_read(path) for path in paths])
            result, _ = self.networks.step(0, _batch(rgb), {})
            for path, picture in zip(paths, result.rgb, strict=True):
                cv2.imwrite(str(self.folder / "frames_up" / path.name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def _encode(self) -> None:
        convert = YuvConverter(*self.size)
        with X264File(self.folder / "hd.mp4", self.size, self.encoder) as out:
            for path in sorted((self.folder / "frames_up").iterdir()):
                out.write(convert.convert(_read(path)))

    def _matte(self) -> None:
        convert = YuvConverter(*self.size)
        carry: Carry = {}
        with (
            X264File(self.folder / "fgr.mp4", self.size, self.encoder) as fgr,
            X264File(self.folder / "alpha.mp4", self.size, self.encoder) as pha,
        ):
            for frames in _grouped(decoded(self.folder / "hd.mp4", self.decode_threads), self.batch):
                rgb: UInt8 = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(
                    np.uint8, copy=False
                )
                result, carry = self.networks.step(1, _batch(rgb), carry)
                assert result.alpha is not None
                for picture, alpha in zip(result.rgb, result.alpha, strict=True):
                    fgr.write(convert.convert(picture))
                    pha.write(_grey(alpha))

    def _overlay(self) -> None:
        overlay = _Overlay(self.size)
        sources = (decoded(self.folder / f"{name}.mp4", self.decode_threads) for name in ("fgr", "alpha"))
        with X264File(self.result, self.size, self.encoder, sound=self.clip) as out:
            for fgr, alpha in zip(*sources, strict=True):
                out.write(overlay.blend(self.background, fgr, alpha))


class _Overlay:
    """`[1][2]alphamerge,[0]overlay` as one graph; alpha is the luma of a video of its own."""

    def __init__(self, size: tuple[int, int]) -> None:
        source = f"video_size={size[0]}x{size[1]}:pix_fmt=yuv420p:time_base=1/1:colorspace=bt709:range=tv"
        self._graph = Graph()
        below, fgr, alpha = (self._graph.add("buffer", source) for _ in range(3))
        luma, merge = self._graph.add("extractplanes", "y"), self._graph.add("alphamerge")
        overlay, self._sink = self._graph.add("overlay", "format=yuv420"), self._graph.add("buffersink")
        alpha.link_to(luma)
        fgr.link_to(merge, 0, 0)
        luma.link_to(merge, 0, 1)
        below.link_to(overlay, 0, 0)
        merge.link_to(overlay, 0, 1)
        overlay.link_to(self._sink)
        self._graph.configure()
        self._pads = (below, fgr, alpha)
        self._count = 0

    def blend(self, *frames: VideoFrame) -> VideoFrame:
        """Background, foreground and alpha to one frame."""
        for pad, frame in zip(self._pads, frames, strict=True):
            frame.pts, frame.time_base = self._count, Fraction(1)
            pad.push(frame)
        self._count += 1
        blended = self._sink.pull()
        assert isinstance(blended, VideoFrame)
        return blended


def _batch(rgb: UInt8) -> FrameBatch:
    return FrameBatch(rgb, np.arange(len(rgb)), np.zeros(len(rgb), np.bool_))


def _read(path: Path) -> UInt8:
    """A picture [H,W,3] in RGB."""
    bgr: UInt8 | None = cv2.imread(str(path))
    assert bgr is not None
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _grey(alpha: UInt8) -> VideoFrame:
    """Alpha [H,W] as the luma of a `yuv420p` frame."""
    height, width = alpha.shape
    frame = VideoFrame(width, height, "yuv420p")
    plane(frame, 0)[:] = alpha
    plane(frame, 1)[:] = plane(frame, 2)[:] = 128
    return frame


def _grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while group := list(islice(source, size)):
        yield group
