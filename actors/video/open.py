"""The only door to input media.

What the whitelists stop was measured: playlists, manifests and concat scripts opened other files or URLs in every
library tried, under their own or a false extension; with both whitelists and a `file:` path none did. Input is only
opened in the decoding process (`actors.video.child`), because a header can crash a parser too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from actors.video.limits import Limits, check_size
from actors.video.names import check_path
from actors.video.structure import Structure, inspect_structure
from cluster.errors import MediaError

#: libavformat demuxers that may read an input. Sound-only ones are here to say "no video stream", not "unknown".
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mp3,wav,flac,ogg,aac"

_CONVERT = "convert it to mp4 or mkv first"
_TEXTS = {
    b"#EXTM3U": "a playlist (HLS)",
    b"ffconcat": "a concat script",
    b"<?xml": "a manifest or other XML text",
    b"<MPD": "a manifest (DASH)",
    b"v=0": "a session description (SDP)",
    b"http://": "the text of a web address",
    b"https://": "the text of a web address",
}


@contextmanager
def open_media(path: Path, limits: Limits) -> Iterator[InputContainer]:
    """An input, opened safely, whose header is within the limits and that has a video stream.

    Raises:
        MediaError: the file is refused; the text names it, the reason and a remedy.
    """
    absolute = check_path(path, limits)
    structure = inspect_structure(absolute)
    if structure.missing:
        raise MediaError(path.name, structure.missing, remedy="copy, download or record it again")
    try:
        container = av.open(  # noqa: TID251
            f"file:{absolute}",
            metadata_errors="replace",
            container_options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
        )
    except PermissionError as error:
        raise MediaError(path.name, "cannot be read: permission denied") from error
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(path.name, _why_unopened(absolute, structure, error), remedy=_CONVERT) from error
    with container:
        _check_header(container, path.name, limits)
        yield container


def _why_unopened(path: Path, structure: Structure, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(256).lstrip(b"\xef\xbb\xbf \r\n\t")
    for start, what in _TEXTS.items():
        if head.startswith(start):
            return f"is not a video file: {what}"
    if structure.container:
        return (
            f"is broken: its {structure.container} header cannot be read ({getattr(error, 'strerror', None) or error})"
        )
    return "is not a video file (no known container)"


def _check_header(container: InputContainer, name: str, limits: Limits) -> None:
    if len(container.streams) > limits.max_streams:
        raise MediaError(
            name,
            f"has too many streams: {len(container.streams)}, allowed {limits.max_streams}",
            remedy="remux it with fewer, or raise limits.max_streams",
        )
    stream = video_stream(container, name)
    check_size(stream.codec_context.width, stream.codec_context.height, name, limits)
    check_seconds((container.duration or 0) / av.time_base, name, limits)
    # Enforced by the decoder on later changes of size as well; through av.open it would not be.
    stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}


def video_stream(container: InputContainer, name: str) -> VideoStream:
    """The video stream to work on: the default one, else the first. Cover art is not video."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & pictures]
    if not streams:
        raise MediaError(name, "has no video stream", remedy="give a file with pictures in it")
    stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        raise MediaError(name, "has a video codec that is not known here", remedy=_CONVERT)
    return stream


def check_seconds(seconds: float, name: str, limits: Limits) -> None:
    """Refuse what lasts too long."""
    if seconds > limits.max_seconds:
        raise MediaError(
            name,
            f"is over the duration limit: {seconds:.1f} s, allowed {limits.max_seconds:.1f} s",
            remedy="cut it, or raise limits.max_seconds",
        )
