"""One libav graph in one process: what a draft restaging could cost at best.

decode → chromakey at source size → scale → overlay on the same background → x264 with the same options and threads
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from av import VideoFrame
from av.filter import Graph

from actors.video.encode import EncoderSettings
from bench.media import X264File, decoded

#: The clip's screen, and how far from it a colour may be.
_KEY = "chromakey=0x0AA546:0.12:0.08"


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast frames came out.

    Attributes:
        frames: in all.
        seconds: from opening the clip to the closed file.
        steady_fps: frames a second after the first `lead` frames, the encoder's flushing included.
        cpu_ms: CPU time of a frame, user and system, of all threads.
    """

    frames: int
    seconds: float
    steady_fps: float
    cpu_ms: float


def run_graph(
    clip: Path,
    target: Path,
    *,
    background: VideoFrame,
    encoder: EncoderSettings,
    decode_threads: int,
    lead: int,
) -> Pace:
    """Restages a green-screen clip.

    Args:
        background: one frame of the output size, `yuv420p`.
        decode_threads: as many as a lane's decoder has. The graph has libavfilter's default: one a core.
        lead: frames that the steady pace leaves out, as the job's does.
    """
    size = background.width, background.height
    cpu, begun = os.times(), time.perf_counter()
    steady, count = begun, 0
    graph: _Graph | None = None
    with X264File(target, size, encoder) as out:
        for frame in decoded(clip, decode_threads):
            graph = graph or _Graph(frame, size)
            out.write(graph.restage(background, frame))
            count += 1
            if count == lead:
                steady = time.perf_counter()
    ended, after = time.perf_counter(), os.times()
    spent = after.user + after.system - cpu.user - cpu.system
    return Pace(count, ended - begun, (count - lead) / (ended - steady), 1000 * spent / count)


class _Graph:
    def __init__(self, like: VideoFrame, size: tuple[int, int]) -> None:
        width, height = size
        self._graph = Graph()
        common = "time_base=1/1:colorspace=bt709:range=tv"
        figure = self._graph.add("buffer", f"video_size={like.width}x{like.height}:pix_fmt={like.format.name}:{common}")
        below = self._graph.add("buffer", f"video_size={width}x{height}:pix_fmt=yuv420p:{common}")
        key_name, _, key = _KEY.partition("=")
        keyed = self._graph.add(key_name, key)
        scaled = self._graph.add("scale", f"{width}:{height}:flags=lanczos")
        overlay, self._sink = self._graph.add("overlay", "format=yuv420"), self._graph.add("buffersink")
        figure.link_to(keyed)
        keyed.link_to(scaled)
        below.link_to(overlay, 0, 0)
        scaled.link_to(overlay, 0, 1)
        overlay.link_to(self._sink)
        self._graph.configure()
        self._pads = (below, figure)
        self._count = 0

    def restage(self, background: VideoFrame, frame: VideoFrame) -> VideoFrame:
        for pad, given in zip(self._pads, (background, frame), strict=True):
            given.pts, given.time_base = self._count, Fraction(1)
            pad.push(given)
        self._count += 1
        done = self._sink.pull()
        assert isinstance(done, VideoFrame)
        return done
