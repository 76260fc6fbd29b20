"""MPEG-TS to mp4 without re-encoding, because seeking in MPEG-TS is unusable (0 of 12 seeks were right)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import av
from av.container import InputContainer

from actors.video.open import video_stream
from cluster.errors import MediaError

TIMESCALE = 90000  # MPEG-TS's own: times stay exact


def remuxed_path(path: Path, workdir: Path) -> Path:
    """Where the copy of this very file is kept: the same for the same path, size and change time."""
    status = path.stat()
    identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    return workdir / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.mp4"


def remux(container: InputContainer, target: Path, partial: Path, name: str, on_packet: Callable[[], None]) -> None:
    """Copy the video stream to `target`, with its times. Sound is read from the original.

    Args:
        partial: written, then renamed; whoever gave the name removes it after a failure, which may be this process's
            end.

    Raises:
        MediaError: the stream cannot be kept in an mp4, or its times go backwards.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    video = video_stream(container, name)
    started = False
    try:
        # The movie's timescale is that of start offsets: at its default of 1000 the first frame moves by up to 0.5 ms.
        options = {"video_track_timescale": str(TIMESCALE), "movie_timescale": str(TIMESCALE)}
        with av.open(str(partial), "w", format="mp4", container_options=options) as out:  # noqa: TID251
            copy = out.add_stream_from_template(video)
            for packet in container.demux(video):
                on_packet()
                if packet.dts is None:
                    continue
                started |= packet.is_keyframe
                if started:  # a recording may begin inside a GOP
                    packet.stream = copy
                    out.mux(packet)
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(name, f"cannot be remuxed from MPEG-TS: {reason}", remedy="convert it to mp4 first") from error
    partial.replace(target)
