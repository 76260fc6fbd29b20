"""Strangers' images: a process each, started before; refused by name, and never a burden to others."""

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
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from actors.video.image import encode_still
from actors.video.limits import Limits
from actors.video.stills import Stills
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
        time.sleep(0.02)


def waiting(stills: Stills) -> list[int]:
    return stills._spares.pids()


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


def test_what_is_no_image_for_requests_is_refused_before_any_process_sees_it(stills: Stills) -> None:
    wait_for(lambda: len(waiting(stills)) == 2)
    before = waiting(stills)
    for name, (data, why) in refused().items():
        with pytest.raises(MediaError, match=f"^{name}: .*{why}"):
            stills.decode(data, name)
    with Stills(replace(LIMITS, max_bytes=1000), spares=0) as strict, pytest.raises(MediaError, match="has 1001 bytes"):
        strict.decode(bytes(1001), "large")
    assert waiting(stills) == before


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
    with Stills(replace(LIMITS, memory_bytes=100 * 2**20), spares=0) as strict:
        with pytest.raises(MediaError, match=r"^bomb\.png: .*(memory|cannot be decoded)"):
            strict.decode(data, "bomb.png")
        assert strict.decode(encoded(picture(6), ".png"), "good").rgb.shape == (48, 64, 3)


def test_spares_are_used_once_and_replaced(stills: Stills) -> None:
    used = set()
    for seed in range(3):
        wait_for(lambda: len(waiting(stills)) == 2)
        first = waiting(stills)[0]
        used.add(first)
        stills.decode(encoded(picture(seed), ".png"), "a.png")
        assert not is_running(first) and first not in waiting(stills)
    assert len(used) == 3


def test_without_spares_one_is_started_on_the_spot() -> None:
    with Stills(LIMITS, spares=0) as none:
        assert np.array_equal(none.decode(encoded(picture(7), ".png"), "a.png").rgb, picture(7))
        assert waiting(none) == []


def test_spares_that_die_while_they_wait_are_replaced(stills: Stills) -> None:
    wait_for(lambda: len(waiting(stills)) == 2)
    dead = waiting(stills)
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    # At once: nobody waits for the thread that looks after them.
    assert np.array_equal(stills.decode(encoded(picture(8), ".png"), "a.png").rgb, picture(8))
    wait_for(lambda: len(waiting(stills)) == 2 and not set(waiting(stills)) & set(dead))


def test_a_spare_that_dies_as_it_is_asked_costs_nothing(stills: Stills, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look whether it lives and the image."""
    wait_for(lambda: len(waiting(stills)) == 2)
    take, killed = stills._spares.take, []

    def take_dying() -> object:
        child = take()
        if not killed:
            killed.append(child.pid)
            os.kill(child.pid, signal.SIGKILL)
        return child

    monkeypatch.setattr(stills._spares, "take", take_dying)
    assert np.array_equal(stills.decode(encoded(picture(9), ".png"), "a.png").rgb, picture(9))
    assert killed


def test_waiting_is_no_stall_but_silence_afterwards_is() -> None:
    with Stills(replace(LIMITS, stall_seconds=0.5), spares=1) as strict:
        wait_for(lambda: len(waiting(strict)) == 1)
        before = waiting(strict)
        time.sleep(2)
        assert waiting(strict) == before and is_running(before[0])
        take = strict._spares.take

        def take_stopped() -> object:
            child = take()
            os.kill(child.pid, signal.SIGSTOP)
            return child

        strict._spares.take = take_stopped  # type: ignore[assignment,method-assign]
        with pytest.raises(MediaError, match=r"a\.png: its decoder stalled"):
            strict.decode(encoded(picture(10), ".png"), "a.png")


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGXCPU"])
def test_a_decoder_that_dies_of_an_image_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Stills(LIMITS, spares=0) as stills:
        take = stills._spares.take

        def take_doomed() -> object:
            child = take()
            given = child.give

            def give(*arguments: object) -> None:
                given(*arguments)  # type: ignore[arg-type]
                os.kill(child.pid, signal.Signals[name])

            child.give = give  # type: ignore[method-assign]
            return child

        monkeypatch.setattr(stills._spares, "take", take_doomed)
        data = encode_still(np.zeros((4000, 4000, 3), np.uint8), None, "webp", 100)
        with pytest.raises(MediaError, match=rf"a\.webp: its decoder was ended by {name}"):
            stills.decode(data, "a.webp")


def test_closing_and_dropping_leave_no_process() -> None:
    closed = Stills(LIMITS)
    wait_for(lambda: len(waiting(closed)) == 2)
    pids = waiting(closed)
    closed.close()
    closed.close()
    assert not any(is_running(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        closed.decode(encoded(picture(1), ".png"), "a.png")
    opened = Stills(LIMITS)
    spares = opened._spares
    wait_for(lambda: len(spares.pids()) == 2)
    pids = spares.pids()
    del opened
    gc.collect()
    wait_for(lambda: not any(is_running(pid) for pid in pids))


def test_spares_die_with_their_parent() -> None:
    script = (
        "import sys, time\nfrom actors.video.limits import Limits\nfrom actors.video.stills import Stills\n"
        "stills = Stills(Limits())\n"
        "while len(stills._spares.pids()) < 2:\n    time.sleep(0.01)\n"
        "print(*stills._spares.pids(), *(m for m in ('torch', 'ray', 'cv2') if m in sys.modules), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(is_running(pid) for pid in pids)
        parent.kill()
    wait_for(lambda: not any(is_running(pid) for pid in pids))


def test_nothing_is_left_open(stills: Stills) -> None:
    def settled() -> int:
        wait_for(lambda: len(waiting(stills)) == 2)
        return len(list(Path("/proc/self/fd").iterdir()))

    first, threads = settled(), threading.active_count()
    for seed in range(4):
        stills.decode(encoded(picture(seed), ".png"), "a.png")
    wait_for(lambda: settled() == first and threading.active_count() <= threads)


def test_an_image_s_process_can_write_no_file_and_work_no_minute(stills: Stills) -> None:
    wait_for(lambda: len(waiting(stills)) == 2)
    pid = waiting(stills)[0]

    def confined() -> dict[str, str]:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
        return {line[:26].strip(): line[26:47].strip() for line in lines}

    wait_for(lambda: confined()["Max file size"] == "0")
    assert confined()["Max cpu time"] == "30"
    assert confined()["Max core file size"] == "0"
    assert confined()["Max data size"] == str(LIMITS.memory_bytes)
