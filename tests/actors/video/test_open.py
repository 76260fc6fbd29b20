"""Hostile and broken inputs are refused by name, reason and remedy; nothing but the named file is ever opened."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import pytest

from actors.video.limits import Limits
from actors.video.open import open_media
from actors.video.scan import inspect, scan
from cluster.errors import MediaError
from tests.broken import LIMITS, write_broken
from tests.media import Sound, write_clip


class _Canary(HTTPServer):
    """A server that counts who asks."""

    hits = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/clip.mp4"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Canary)
        self.server.hits += 1
        self.send_error(404)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def canary_server() -> Iterator[_Canary]:
    with _Canary() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_twenty_seven_broken_inputs_are_refused_by_name_and_reason(tmp_path: Path, canary_server: _Canary) -> None:
    canary = write_clip(tmp_path / "canary.mp4").path
    folder = tmp_path / "inputs"
    folder.mkdir()
    expected = write_broken(folder, canary, canary_server.url)
    assert len(expected) == 27
    for name, word in expected.items():
        with pytest.raises(MediaError) as caught:
            scan(folder / name, LIMITS, workdir=tmp_path / "work")
        assert caught.value.thing == name
        assert word in caught.value.reason, f"{name}: {caught.value}"
    assert canary_server.hits == 0


def test_disguises_open_with_the_bare_library_so_that_the_whitelists_are_what_stops_them(tmp_path: Path) -> None:
    """The canary is a real one: without `open_media` its frames come out."""
    canary = write_clip(tmp_path / "canary.ts").path
    playlist = tmp_path / "a.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{canary}\n#EXT-X-ENDLIST\n")
    join = tmp_path / "join.mp4"
    join.write_text("ffconcat version 1.0\nfile canary.ts\n")
    for disguise in (playlist, join):
        with av.open(str(disguise)) as leak:  # noqa: TID251
            assert sum(1 for _ in leak.decode(video=0)) > 0
        with pytest.raises(MediaError), open_media(disguise, Limits()):
            pass


@pytest.mark.parametrize(
    "text",
    [
        "concat:{canary}",
        "subfile,,start,0,end,0,,:{canary}",
        "http://127.0.0.1/a.mp4",
        "file://{canary}",
        "data:video/mp4;base64,AAAA",
        "pipe:0",
        "-i.mp4",
        "a%03d.mp4",
        "a\nb.mp4",
        "a\0b.mp4",
        "/dev/zero",
        "missing.mp4",
    ],
)
def test_names_that_libraries_interpret_are_refused(text: str, tmp_path: Path) -> None:
    canary = write_clip(tmp_path / "canary.mp4", frames=2).path
    with pytest.raises(MediaError):
        inspect(Path(text.format(canary=canary)), LIMITS)


def test_fifo_and_folder_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for name, word in (("pipe.mp4", "regular"), ("folder.mp4", "folder")):
        with pytest.raises(MediaError, match=word):
            inspect(tmp_path / name, LIMITS)


def test_unreadable_file_says_so(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    path = write_clip(tmp_path / "a.mp4", frames=2).path
    path.chmod(0)
    with pytest.raises(MediaError, match="permission"):
        inspect(path, LIMITS)


def test_size_change_in_mid_stream_is_refused(tmp_path: Path) -> None:
    parts = [write_clip(tmp_path / f"{w}.ts", frames=5, width=w, height=96, start=w / 64).path for w in (128, 192)]
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(p.read_bytes() for p in parts))
    with pytest.raises(MediaError, match="changes its size from 128x96 to 192x96"):
        scan(both, LIMITS, workdir=tmp_path / "work")


def test_pixels_are_limited_in_the_decoder_too_where_the_size_changes_in_mid_stream(tmp_path: Path) -> None:
    parts = [write_clip(tmp_path / f"{w}.ts", frames=5, width=w, height=96, start=w / 64).path for w in (128, 192)]
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(p.read_bytes() for p in parts))

    def widths(limits: Limits) -> set[int]:
        found = set()
        with open_media(both, limits) as container:
            for packet in container.demux(video=0):
                with contextlib.suppress(av.error.InvalidDataError):
                    found |= {frame.width for frame in packet.decode()}
        return found

    assert widths(LIMITS) == {128, 192}
    assert widths(replace(LIMITS, max_pixels=128 * 96)) == {128}
    with pytest.raises(MediaError, match=r"both\.ts"):
        scan(both, replace(LIMITS, max_pixels=128 * 96), workdir=tmp_path / "work")


def test_decoded_times_count_where_the_header_says_less(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mkv", frames=90, container_options={"live": "1"})
    limits = replace(LIMITS, max_seconds=2)
    with pytest.raises(MediaError, match="duration limit"):
        scan(clip.path, limits, workdir=tmp_path)
    assert len(scan(clip.path, LIMITS, workdir=tmp_path)) == 90


def test_sound_longer_or_shorter_than_the_picture_is_not_cut_off(tmp_path: Path) -> None:
    for seconds in (0.5, 5.0):
        clip = write_clip(tmp_path / f"{seconds}.mkv", frames=45, sounds=(Sound("libopus", seconds=seconds),))
        assert len(scan(clip.path, LIMITS, workdir=tmp_path)) == 45
