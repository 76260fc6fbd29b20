"""Strangers' images: a process each; refused by name, and never a burden to others."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import psutil
import pytest

from actors.video.image import encode_still
from actors.video.limits import Limits
from actors.video.process import Child
from actors.video.stills import Stills
from actors.video.wire import Message
from cluster.errors import MediaError
from tests.actors.video.test_child import ROOT, is_running
from tests.images import animated_webp, bomb, cmyk_jpeg, encoded, exif, jpeg_of_size, png, with_exif

LIMITS = Limits(stall_seconds=120)


def picture(seed: int, width: int = 64, height: int = 48) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(cv2.resize(noise, (width, height)), np.uint8)


@pytest.fixture(scope="module")
def stills() -> Iterator[Stills]:
    with Stills(LIMITS) as opened:
        yield opened


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "png"), (".jpg", "jpeg"), (".webp", "webp")])
def test_an_image_comes_back_as_pixels(stills: Stills, suffix: str, kind: str) -> None:
    rgb = picture(1)
    still = stills.decode(encoded(rgb, suffix, cv2.IMWRITE_JPEG_QUALITY, 100), "a" + suffix)
    assert (still.kind, still.alpha, still.rgb.dtype) == (kind, None, np.uint8)
    assert np.abs(still.rgb.astype(int) - rgb).max() <= (40 if kind == "jpeg" else 0)
    still.rgb[...] = 0  # the caller's to change


def test_alpha_comes_too_and_all_is_upright(stills: Stills) -> None:
    rgba = np.dstack([picture(2), np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)])
    still = stills.decode(with_exif(encoded(rgba, ".png"), exif(6)), "a.png")
    assert still.alpha is not None
    want = cv2.rotate(rgba, cv2.ROTATE_90_CLOCKWISE)
    assert np.array_equal(still.rgb, want[..., :3]) and np.array_equal(still.alpha, want[..., 3])


def test_many_threads_get_each_their_own(stills: Stills) -> None:
    files = [(seed, encode_still(picture(seed, 64 + seed, 48), None, "png")) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda file: stills.decode(file[1], f"{file[0]}.png").rgb, files))
    for (seed, _), rgb in zip(files, found, strict=True):
        assert np.array_equal(rgb, picture(seed, 64 + seed, 48))


def refused() -> dict[str, tuple[bytes, str]]:
    rgb = picture(3)
    return {
        "text": (b"hello" * 100, "not an image of a known kind; use a PNG, JPEG or WebP file"),
        "empty": (b"", "not an image of a known kind; use a PNG"),
        "bmp": (encoded(rgb, ".bmp"), "is a BMP image; use a PNG, JPEG or WebP file"),
        "gif": (b"GIF89a" + bytes(100), "use a PNG, JPEG or WebP file"),
        "small": (encoded(picture(3, 15, 64), ".png"), "15x64 pixels, under 16x16; give a larger one"),
        "bomb": (bomb(30_000), "over the pixel limit: 30000x30000"),
        "lying jpeg": (jpeg_of_size(encoded(rgb, ".jpg"), 60_000, 60_000), "over the pixel limit: 60000x60000"),
        "animated": (animated_webp(rgb), "is an animation; send one of its pictures"),
        "cmyk": (cmyk_jpeg([np.zeros((48, 64), np.uint8)] * 4), "is a CMYK JPEG; convert it to RGB"),
    }


def test_what_is_no_image_for_requests_is_refused_before_any_process_sees_it(
    stills: Stills, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.video.stills.Child", None)
    for name, (data, why) in refused().items():
        with pytest.raises(MediaError, match=f"^{name}: .*{why}"):
            stills.decode(data, name)
    with Stills(replace(LIMITS, max_bytes=1000)) as strict, pytest.raises(MediaError, match="has 1001 bytes"):
        strict.decode(bytes(1001), "large")


def test_broken_images_are_errors_of_their_own(stills: Stills) -> None:
    rng = np.random.default_rng(4)
    for suffix in (".png", ".jpg", ".webp"):
        data = encoded(picture(4, 320, 240), suffix)
        head = data[:48]
        for number, broken in enumerate((data[: len(data) // 2], head + rng.bytes(4000), data[:200] + rng.bytes(400))):
            with pytest.raises(MediaError, match=f"^{number}{suffix}: "):
                stills.decode(broken, f"{number}{suffix}")
    short = png(64, 64, 8, 2, [bytes(192)] * 10)  # ten rows of sixty-four
    with pytest.raises(MediaError, match="cannot be decoded"):
        stills.decode(short, "short")
    assert stills.decode(encoded(picture(4), ".png"), "good").rgb.shape == (48, 64, 3)


def test_a_header_that_lies_within_the_limits_gives_its_size_or_an_error(stills: Stills) -> None:
    for width, height in ((2000, 48), (64, 3000), (16, 16)):
        try:
            still = stills.decode(jpeg_of_size(encoded(picture(5), ".jpg"), width, height), "liar")
        except MediaError as error:
            assert "cannot be decoded" in error.reason
        else:
            assert still.rgb.shape == (height, width, 3)


def test_appetite_for_memory_is_an_error_of_that_image() -> None:
    data = bomb(5000)
    with Stills(replace(LIMITS, memory_bytes=100 * 2**20)) as strict:
        with pytest.raises(MediaError, match=r"^bomb\.png: .*(memory|cannot be decoded)"):
            strict.decode(data, "bomb.png")
        assert strict.decode(encoded(picture(6), ".png"), "good").rgb.shape == (48, 64, 3)


class Observed(Child):
    """Children of stills, the last of which is remembered, and sent a signal when it has its image."""

    last: ClassVar[Child]
    signal: ClassVar[signal.Signals | None] = None

    def send(self, message: Message) -> None:
        Observed.last = self
        super().send(message)
        if Observed.signal is not None:
            os.kill(self.pid, Observed.signal)


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> type[Observed]:
    monkeypatch.setattr("actors.video.stills.Child", Observed)
    return Observed


def test_each_image_has_a_process_that_ends_with_it(stills: Stills, observed: type[Observed]) -> None:
    pids = set()
    for seed in range(3):
        stills.decode(encoded(picture(seed), ".png"), "a.png")
        pids.add(observed.last.pid)
        assert not Path(f"/proc/{observed.last.pid}").exists()
    assert len(pids) == 3


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (signal.SIGSEGV, "its decoder was ended by SIGSEGV"),
        (signal.SIGXCPU, "its decoder was ended by SIGXCPU"),
        (signal.SIGSTOP, "its decoder stalled"),
    ],
)
def test_a_decoder_that_dies_or_hangs_of_an_image_is_named(
    sent: signal.Signals, why: str, observed: type[Observed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observed, "signal", sent)
    data = encode_still(np.zeros((4000, 4000, 3), np.uint8), None, "webp", 100)
    with Stills(replace(LIMITS, stall_seconds=0.5) if sent == signal.SIGSTOP else LIMITS) as stills:
        with pytest.raises(MediaError, match=rf"a\.webp: {why}"):
            stills.decode(data, "a.webp")
        assert not is_running(observed.last.pid)


def servers() -> set[int]:
    """Process ids of the fork servers that this process has."""
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "actors.video.fork_server" in child.cmdline():
                found.add(child.pid)
    return found


def test_closing_and_dropping_leave_no_process() -> None:
    before = servers()
    closed = Stills(LIMITS)
    wait_for(lambda: len(servers() - before) == 1)
    closed.close()
    closed.close()
    wait_for(lambda: servers() <= before)
    with pytest.raises(RuntimeError, match="closed"):
        closed.decode(encoded(picture(1), ".png"), "a.png")
    dropped = Stills(LIMITS)
    dropped.decode(encoded(picture(1), ".png"), "a.png")
    wait_for(lambda: len(servers() - before) == 1)
    del dropped
    gc.collect()
    wait_for(lambda: servers() <= before)


def test_an_image_that_is_being_decoded_when_its_decoder_closes_is_finished(observed: type[Observed]) -> None:
    class Closing(observed):  # type: ignore[misc,valid-type]
        def send(self, message: Message) -> None:
            stills.close()
            super().send(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.video.stills.Child", Closing)
        stills = Stills(LIMITS)
        assert np.array_equal(stills.decode(encoded(picture(8), ".png"), "a.png").rgb, picture(8))


def test_server_of_images_dies_with_its_parent_which_loads_no_codec() -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom actors.video.limits import Limits\n"
        "from actors.video.stills import Stills\nstills = Stills(Limits())\n"
        "print(*(t for p in Path('/proc/self/task').glob('*/children') for t in p.read_text().split()))\n"
        "print(*(m for m in ('torch', 'ray', 'cv2', 'av') if m in sys.modules), flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        (pid,) = (int(pid) for pid in parent.stdout.readline().split())
        assert is_running(pid) and parent.stdout.readline() == "\n"
        parent.kill()
    wait_for(lambda: not is_running(pid))


def test_nothing_is_left_open(stills: Stills) -> None:
    def use() -> tuple[int, int]:
        stills.decode(encoded(picture(1), ".png"), "a.png")
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    first = use()
    assert [use() for _ in range(3)] == [first] * 3


def test_an_image_s_process_can_write_no_file_and_work_no_minute(
    stills: Stills, observed: type[Observed], monkeypatch: pytest.MonkeyPatch
) -> None:
    confined: dict[str, str] = {}

    def receive(child: Child) -> tuple[Message, bytes]:
        def is_confined() -> bool:
            lines = Path(f"/proc/{child.pid}/limits").read_text().splitlines()[1:]
            confined.update({line[:26].strip(): line[26:47].strip() for line in lines})
            return confined["Max file size"] == "0"

        wait_for(is_confined)
        return Child.receive(child)

    monkeypatch.setattr(observed, "receive", receive)
    stills.decode(encode_still(np.zeros((4000, 4000, 3), np.uint8), None, "webp", 100), "a.webp")
    assert confined["Max file size"] == "0"
    assert confined["Max cpu time"] == "30"
    assert confined["Max core file size"] == "0"
    assert confined["Max data size"] == str(LIMITS.memory_bytes)
