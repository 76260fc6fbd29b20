"""What the decoding process may take is bounded by the kernel, and its end by a bound is a named error."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.video.decode import Decoder
from actors.video.limits import Limits
from actors.video.process import Child
from actors.video.scan import inspect, scan
from actors.video.sound import extract_sound
from cluster.config import Config
from cluster.errors import MediaError
from jobs.limits import for_short_clips, limits_of
from tests.actors.video.test_child import ROOT
from tests.media import Sound, write_clip

LIMITS = Limits(stall_seconds=120)


def confined(then: str, *, cpu_seconds: int = 60, file_bytes: int = 0) -> subprocess.CompletedProcess[str]:
    """A process that confines itself and goes on."""
    script = (
        f"import resource\nfrom actors.video.child import confine\nconfine(2**30, {cpu_seconds}, {file_bytes})\n{then}"
    )
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)


def bounds_of(pid: int) -> dict[str, int]:
    kinds = {"cpu": resource.RLIMIT_CPU, "file": resource.RLIMIT_FSIZE, "core": resource.RLIMIT_CORE}
    return {name: resource.prlimit(pid, kind)[0] for name, kind in kinds.items()}


def test_work_without_end_is_ended_by_sigxcpu() -> None:
    assert confined("while True: pass", cpu_seconds=1).returncode == -signal.SIGXCPU


@pytest.mark.parametrize("allowed", [0, 100])
def test_a_file_over_its_size_ends_its_writer(tmp_path: Path, allowed: int) -> None:
    path = tmp_path / "out"
    write = "with open({!r}, 'wb', buffering=0) as file:\n    file.write(bytes({}))\n    print('written')"
    assert confined(write.format(str(path), allowed), file_bytes=allowed).stdout == "written\n"
    more = confined(write.format(str(path), allowed) + "\n    file.write(b'x')", file_bytes=allowed)
    assert more.returncode == -signal.SIGXFSZ
    assert path.stat().st_size == allowed


def test_pipes_are_no_files_and_what_is_imported_late_writes_none(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("print('imported')")
    done = confined(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport late")
    assert (done.returncode, done.stdout) == (0, "imported\n")


def test_a_lower_limit_of_the_machine_stays() -> None:
    script = (
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (7, 7))\n"
        "from actors.video.child import confine\nconfine(2**30, 60, 0)\n"
        "print(resource.getrlimit(resource.RLIMIT_CPU))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "(7, 7)\n"


def test_cpu_time_is_as_configured_and_less_for_clips_that_somebody_waits_for() -> None:
    config = Config()
    assert limits_of(config).most_cpu_seconds == Limits().most_cpu_seconds == 12 * 3600
    assert limits_of(for_short_clips(config)).most_cpu_seconds == 60 + 60 * 10
    assert Limits.from_json(replace(LIMITS, cpu_seconds=0.3).to_json()).most_cpu_seconds == 1


def test_a_decoder_s_cpu_time_is_bounded_and_its_end_named(tmp_path: Path) -> None:
    found = scan(write_clip(tmp_path / "clip.mp4", frames=60).path, LIMITS, workdir=tmp_path)
    with Decoder(found, LIMITS) as decoder:
        next(decoder.frames(0, 1))
        assert bounds_of(decoder.pid) == {"cpu": LIMITS.most_cpu_seconds, "file": 0, "core": 0}
    with (
        Decoder(found, replace(LIMITS, cpu_seconds=1)) as decoder,
        pytest.raises(MediaError, match=r"clip\.mp4: its decoder was ended by SIGXCPU, for it took more CPU time"),
    ):
        while True:
            list(decoder.frames(0, 60))


class Starved(Child):
    """One that may write next to nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (1000, 1000))


def test_a_copy_over_its_size_is_a_named_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "a.ts", frames=30, sounds=(Sound(),)).path
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr("actors.video.scan.Child", Starved)
    monkeypatch.setattr("actors.video.sound.Child", Starved)
    with pytest.raises(MediaError, match=r"a\.ts: its decoder was ended by SIGXFSZ, for it wrote more than it may"):
        scan(clip, LIMITS, workdir=work)
    with pytest.raises(MediaError, match=r"a\.ts: its decoder was ended by SIGXFSZ"):
        extract_sound(clip, work / "sound.mp4", LIMITS)
    assert list(work.iterdir()) == []
    assert inspect(clip, LIMITS).info.codec == "h264"
    monkeypatch.undo()
    assert len(scan(clip, LIMITS, workdir=work)) == 30


def test_what_a_decoder_says_is_kept_to_a_bound_and_told() -> None:
    with Child("a.mp4", LIMITS) as child:
        child.send({"limits": {"x" * 5_000_000: 1}})  # told by Python as a part of the last line
        with pytest.raises(MediaError, match=r"a\.mp4: its decoder ended with exit code 1: x+") as caught:
            child.receive()
    assert len(str(caught.value)) < 1000
    assert len(child._last_words) <= 1 << 16
