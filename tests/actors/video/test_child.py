"""The decoding process never outlives, stalls or brings down its parent."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.video.decode import Decoder
from actors.video.forking import Forks
from actors.video.limits import Limits
from actors.video.process import Child
from actors.video.scan import Scan, inspect, scan
from cluster.errors import MediaError
from tests.media import number, write_clip

LIMITS = Limits(stall_seconds=120)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    folder = tmp_path_factory.mktemp("clip")
    return scan(write_clip(folder / "clip.mp4", frames=60).path, LIMITS, workdir=folder)


@pytest.fixture
def decoder(found: Scan) -> Iterator[Decoder]:
    with Decoder(found, LIMITS) as opened:
        yield opened


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie that waits for someone else."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_closing_takes_the_process_away(found: Scan) -> None:
    with Decoder(found, LIMITS) as decoder:
        next(decoder.frames(0, 1))
        pid = decoder.pid
        assert is_running(pid)
    assert not Path(f"/proc/{pid}").exists()
    decoder.close()


def test_stopped_process_is_killed_when_it_stalls(found: Scan) -> None:
    with Decoder(found, replace(LIMITS, stall_seconds=1)) as decoder:
        next(decoder.frames(0, 1))
        os.kill(decoder.pid, signal.SIGSTOP)
        with pytest.raises(MediaError, match=r"clip\.mp4: its decoder stalled: no frame within 1 s"):
            list(decoder.frames(30, 60))
        assert not Path(f"/proc/{decoder.pid}").exists()


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGABRT"])
def test_crash_is_named_and_costs_one_file(name: str, decoder: Decoder, found: Scan) -> None:
    next(decoder.frames(0, 1))
    os.kill(decoder.pid, signal.Signals[name])
    with pytest.raises(MediaError, match=f"clip.mp4: its decoder was ended by {name}"):
        list(decoder.frames(1, 60))
    assert not Path(f"/proc/{decoder.pid}").exists()
    with Decoder(found, LIMITS) as other:
        assert number(next(other.frames(5, 6))) == 5


def test_decoder_outlives_the_thread_that_made_it(found: Scan) -> None:
    made: list[Decoder] = []
    thread = threading.Thread(target=lambda: made.append(Decoder(found, LIMITS)))
    thread.start()
    thread.join()
    with made[0] as decoder:
        assert [number(f) for f in decoder.frames(0, 60)] == list(range(60))


def test_dropped_decoder_leaves_no_process(found: Scan) -> None:
    decoder = Decoder(found, LIMITS)
    next(decoder.frames(0, 1))
    pid = decoder.pid
    del decoder
    _wait_until_gone(pid)


@pytest.mark.parametrize("busy", [True, False])
def test_parents_sigkill_leaves_no_process(found: Scan, tmp_path: Path, busy: bool) -> None:
    stored = tmp_path / "scan.npz"
    stored.write_bytes(found.to_bytes())
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from actors.video.decode import Decoder\nfrom actors.video.limits import Limits\n"
        "from actors.video.scan import Scan\n"
        "stored, clip = Path(sys.argv[1]), Path(sys.argv[3])\n"
        "decoder = Decoder(Scan.from_bytes(stored.read_bytes(), clip, stored.parent), Limits())\n"
        "next(decoder.frames(0, 1))\nprint(decoder.pid, flush=True)\n"
        "while sys.argv[2] == 'True':\n    list(decoder.frames(0, 60))\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(stored), str(busy), str(found.path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    _wait_until_gone(pid)


def server_of(decoder: Decoder) -> int:
    """Process id of the fork server that started its process."""
    return int(Path(f"/proc/{decoder.pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_all_decoders_of_a_process_come_from_one_server_and_have_only_what_is_theirs(found: Scan) -> None:
    with Decoder(found, LIMITS) as first, Decoder(found, LIMITS) as second:
        for decoder in (first, second):
            next(decoder.frames(0, 1))
            opened = [str(entry.readlink()) for entry in Path(f"/proc/{decoder.pid}/fd").iterdir()]
            kinds = Counter("memory" if "memfd:frames" in at else at.partition(":")[0] for at in opened)
            # `talk`; `words` twice; the ring, of which a map keeps a copy.
            assert kinds == {"socket": 1, "pipe": 2, "memory": 2, str(found.path): 1}
        assert server_of(first) == server_of(second) != os.getpid()


def test_killed_server_takes_its_decoders_along_and_is_replaced(decoder: Decoder, found: Scan) -> None:
    next(decoder.frames(0, 1))
    server = server_of(decoder)
    os.kill(server, signal.SIGKILL)
    with pytest.raises(MediaError, match=r"clip\.mp4: its decoder was ended by SIGKILL"):
        list(decoder.frames(1, 60))
    _wait_until_gone(decoder.pid)
    with Decoder(found, LIMITS) as other:
        assert number(next(other.frames(5, 6))) == 5
        assert server_of(other) != server


@pytest.mark.parametrize(("python", "why"), [("/nowhere/python", "No such file"), ("/bin/false", "is gone")])
def test_decoder_that_cannot_be_started_is_a_named_error(
    monkeypatch: pytest.MonkeyPatch, python: str, why: str
) -> None:
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(MediaError, match=rf"a\.mp4: cannot be decoded: the decoding process did not start: .*{why}"):
        Child("a.mp4", LIMITS, forks=Forks())


def test_appetite_for_memory_is_an_error_of_that_file(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "big.mkv", frames=1, width=2048, height=2048, codec="ffv1")
    with pytest.raises(MediaError, match="needs more memory") as caught:
        inspect(clip.path, replace(LIMITS, memory_bytes=110 * 2**20))
    assert caught.value.thing == "big.mkv"
    assert inspect(clip.path, LIMITS).info.width == 2048


def test_file_changed_under_work_is_noticed(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=60)
    found = scan(clip.path, LIMITS, workdir=tmp_path)
    write_clip(tmp_path / "a.mp4", frames=60, rate=25)
    with Decoder(found, LIMITS) as decoder, pytest.raises(MediaError, match="does not yield the same frames"):
        list(decoder.frames(40, 60))


def test_jumping_about_and_stopping_early_gives_the_right_frames(decoder: Decoder) -> None:
    for first, last in ((50, 60), (3, 5), (5, 9), (0, 60), (59, 60), (20, 22)):
        assert [number(f) for f in decoder.frames(first, last)] == list(range(first, last))
        walk = decoder.frames(first, last)
        assert number(next(walk)) == first


def test_frames_outside_the_plan_and_wrong_arrays_are_refused(decoder: Decoder) -> None:
    with pytest.raises(IndexError):
        list(decoder.frames(59, 61))
    with pytest.raises(ValueError, match="out is"):
        decoder.read_into(np.empty((2, 4, 4, 3), np.uint8), 0, 2)


def test_nothing_is_left_open(found: Scan) -> None:
    def use() -> int:
        with Decoder(found, LIMITS) as decoder:
            next(decoder.frames(0, 1))
        return len(list(Path("/proc/self/fd").iterdir()))

    use()
    gc.collect()  # what tests before left to it
    first = use()
    assert [use() for _ in range(3)] == [first] * 3


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < deadline, "a stray decoding process"
        time.sleep(0.01)
