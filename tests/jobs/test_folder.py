"""A folder of broken and good inputs: the good ones are done, every broken one is named, nothing is left running."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.broken import LIMITS, write_broken
from tests.jobs.command import Command, write_config
from tests.media import Sound, number, read_rgb, write_clip

#: `tests.broken.LIMITS` as a user configures them.
SETTINGS = {
    "max_gib": LIMITS.max_bytes / 2**30,
    "max_hours": LIMITS.max_seconds / 3600,
    "max_megapixels": LIMITS.max_pixels / 1e6,
    "max_streams": LIMITS.max_streams,
    "max_frames": LIMITS.max_frames,
}
NOBODY = "http://127.0.0.1:9/clip.mp4"

pytestmark = pytest.mark.ray


def test_broken_inputs_are_named_and_good_ones_finish(tmp_path: Path, joining: dict[str, str]) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    canary = write_clip(tmp_path / "canary.mp4", first=1000).path
    expected = write_broken(folder, canary, NOBODY)
    assert len(expected) == 27
    first = 0
    for name, sounds in (("a.mp4", (Sound(),)), ("b.mkv", ()), ("deeper/c.mov", (Sound("pcm_s16le"),)), ("d.mp4", ())):
        (folder / name).parent.mkdir(exist_ok=True)
        write_clip(folder / name, frames=20, width=160, height=96, sounds=sounds, first=first)
        first += 100
    (folder / "d.mp4").rename(folder / "d.avi")  # a wrong extension is no reason to refuse a clip
    config = write_config(tmp_path / "config.yaml", limits=SETTINGS, encode={"threads": 1})
    output = tmp_path / "out"

    choices = ("--preset", "draft", "--matte", "none", "--scale", "1", "--lanes", "1", "--json")
    command = Command(folder, *choices, "--config", config, "-o", output, environment=joining)
    ended = command.finish()

    assert ended.code == 1, ended.errors
    failed = {Path(e["input"]).name: e["error"] for e in ended.events if e["event"] == "failed"}
    assert set(failed) == set(expected)
    for name, word in expected.items():
        assert failed[name].startswith(f"{name}: ")
        assert word in failed[name]
    results = {
        path.relative_to(output).as_posix(): path for path in output.rglob("*.mp4") if ".troupe" not in str(path)
    }
    assert set(results) == {"a.mp4", "b.mp4", "deeper/c.mp4", "d.mp4"}
    assert [number(read_rgb(results[name])[0]) for name in sorted(results)] == [0, 100, 300, 200]
    assert [e["frames"] for e in ended.events if e["event"] == "done"] == [20] * 4
    assert command.living() == []
