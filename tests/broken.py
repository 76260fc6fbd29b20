"""Inputs that must be refused, each with a word that the error has to say, and limits that some of them exceed."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from actors.video.limits import Limits
from tests.media import Look, Sound, write_clip

#: Under these every file of `write_broken` is refused and a clip of up to 200 frames at 640x480 is not.
LIMITS = Limits(
    max_bytes=2_000_000, max_seconds=20, max_pixels=1280 * 720, max_streams=8, max_frames=200, stall_seconds=30
)


def write_broken(folder: Path, canary: Path, url: str) -> dict[str, str]:
    """Write 27 broken inputs; returns file name -> a word of the reason.

    Args:
        canary: a good video that the disguised playlists point at: its pixels must appear nowhere.
        url: an address that must never be asked for.
    """
    expected: dict[str, str] = {}
    for name, (word, write) in _inputs(canary, url).items():
        write(folder / name)
        expected[name] = word
    return expected


def _inputs(canary: Path, url: str) -> dict[str, tuple[str, Callable[[Path], object]]]:
    noise = np.random.default_rng(3).bytes(20_000)
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
        '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1" codecs="avc1">'
        f"<BaseURL>{canary}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    return {
        "zero.mp4": ("empty", lambda p: p.write_bytes(b"")),
        "text.mp4": ("not a video", lambda p: p.write_text("This is no video, it is a letter.\n" * 40)),
        "noise.mp4": ("not a video", lambda p: p.write_bytes(noise)),
        "hls.m3u8": ("playlist", lambda p: p.write_text(hls.format(canary))),
        "hls_disguised.mp4": ("playlist", lambda p: p.write_text(hls.format(canary))),
        "hls_http.mp4": ("playlist", lambda p: p.write_text(hls.format(url))),
        "join_absolute.mp4": ("concat", lambda p: p.write_text(f"ffconcat version 1.0\nfile '{canary}'\n")),
        "join_neighbour.mp4": ("concat", _concat_neighbour(canary)),
        "sdp.mp4": ("session", lambda p: p.write_text(sdp)),
        "dash.mp4": ("manifest", lambda p: p.write_text(dash)),
        "address.mp4": ("web address", lambda p: p.write_text(url)),
        "no_index.mp4": ("moov", _without_moov),
        "cut.mp4": ("cut off", lambda p: _cut(p, 0.7)),
        "cut_faststart.mp4": ("cut off", lambda p: _cut(p, 0.7, {"movflags": "+faststart"})),
        "cut.mkv": ("cut off", lambda p: _cut(p, 0.7)),
        "cut.avi": ("cut off", lambda p: _cut(p, 0.7)),
        "sound_only.mp4": ("no video stream", _sound_only),
        "cover_only.mp3": ("no video stream", _cover_only),
        "one_pixel.mkv": ("under 16x16", lambda p: _plain(p, width=1, height=1)),
        "fifteen_pixels.mkv": ("under 16x16", lambda p: _plain(p, width=15, height=15)),
        "header_only.mp4": ("no frames", _no_frames),
        "many_tracks.mkv": ("streams", lambda p: write_clip(p, frames=5, sounds=[Sound()] * LIMITS.max_streams)),
        "too_long.mp4": ("duration limit", lambda p: write_clip(p, pts=[0, 1, 21], time_base=Fraction(1), rate=1)),
        "too_wide.mp4": ("pixel limit", lambda p: write_clip(p, frames=1, width=1296, height=736)),
        "too_many_frames.mp4": ("frame limit", lambda p: write_clip(p, frames=210, width=64, height=48)),
        "too_big.mp4": ("size limit", _too_big),
        "bad_middle.mp4": ("damaged", write_damaged),
    }


def write_damaged(path: Path) -> None:
    """90 frames, some in the middle corrupt: noise over a part of the coded pictures."""
    write_clip(path, frames=90, options={"bf": "0"}, gop=30)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat")
    middle = begin + (len(data) - begin) // 2
    data[middle : middle + 2000] = np.random.default_rng(1).bytes(2000)
    path.write_bytes(data)


def _plain(path: Path, *, width: int, height: int) -> None:
    with av.open(str(path), "w") as out:  # noqa: TID251
        stream = out.add_stream("ffv1", rate=30)
        stream.codec_context.width, stream.codec_context.height, stream.codec_context.pix_fmt = width, height, "yuv444p"
        frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)


def _concat_neighbour(canary: Path) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        (path.parent / ".neighbour").mkdir(exist_ok=True)
        (path.parent / ".neighbour" / "canary.mp4").write_bytes(canary.read_bytes())
        path.write_text("ffconcat version 1.0\nfile .neighbour/canary.mp4\n")

    return write


def _cut(path: Path, share: float, container_options: dict[str, str] | None = None) -> None:
    write_clip(path, frames=90, container_options=container_options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _without_moov(path: Path) -> None:
    write_clip(path, frames=30)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])


def _sound_only(path: Path) -> None:
    write_clip(path, frames=30, sounds=(Sound(),))
    whole = path.with_suffix(".whole")
    path.rename(whole)
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:  # noqa: TID251
        copy = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    whole.unlink()


def _cover_only(path: Path) -> None:
    with av.open(str(path), "w") as out:  # noqa: TID251
        sound = out.add_stream("libmp3lame", rate=44100)
        cover = out.add_stream("mjpeg", rate=1)
        cover.codec_context.width, cover.codec_context.height, cover.codec_context.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        out.start_encoding()
        for packet in [*cover.encode(picture), *cover.encode(None), *sound.encode(silence), *sound.encode(None)]:
            out.mux(packet)


def _no_frames(path: Path) -> None:
    with av.open(str(path), "w", container_options={"movflags": "+empty_moov"}) as out:  # noqa: TID251
        stream = out.add_stream("libx264", rate=30)
        stream.codec_context.width, stream.codec_context.height, stream.codec_context.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()


def _too_big(path: Path) -> None:
    write_clip(path, frames=30, look=Look())
    size = LIMITS.max_bytes
    with path.open("ab") as file:
        file.write(size.to_bytes(4, "big") + b"free" + bytes(size - 8))
