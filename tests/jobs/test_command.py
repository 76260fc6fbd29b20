"""The command's manners: exit codes, JSON lines, dry runs that start nothing, refusals that say what to do, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from cluster.session import Session
from tests.jobs.command import Command, wait_until, write_config
from tests.jobs.performing import jobs_on
from tests.media import Sound, number, read_rgb, write_clip, write_green_screen

DRAFT = ("--preset", "draft", "--matte", "none", "--scale", "1")

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def _no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's: no weights, no cache, no cluster, no configuration."""
    monkeypatch.setenv("TROUPE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)


def restage(*arguments: object) -> Result:
    """`troupe restage …` in this process, for what starts no Ray."""
    return CliRunner().invoke(app, ["restage", *map(str, arguments)])


def clip(path: Path, frames: int = 30, **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_clip(path, frames=frames, width=160, height=120, **more).path  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.mp4",), "nowhere.mp4: does not exist"),
        (("a.mp4", "--preset", "grand"), "preset grand: does not exist; choose one of draft, balanced, quality"),
        (("a.mp4", *DRAFT, "--target", "720p"), "--target and --scale: contradict each other"),
        (("a.mp4", "--matte", "none", "--background", "red"), "the background would never show"),
        (("a.mp4", "--upscale", "bigger"), "--upscale bigger: is not a model of this family"),
        (("a.mp4", *DRAFT, "--denoise", "0.5"), "has no effect"),
        (("a.mp4", *DRAFT, "--config", "none.yaml"), "none.yaml: "),
        (("a.mp4", "--preset", "draft", "--matte", "none", "--target", "huge"), "target huge: is not a size"),
        (("a.mp4", *DRAFT, "--lanes", "0"), "Invalid value for '--lanes'"),
    ],
)
def test_bad_usage_exits_with_2_and_says_what_is_wrong(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    clip(tmp_path / "a.mp4", frames=2)
    result = restage(*arguments, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "out").exists()


def test_wrong_background_is_told_once_however_many_clips_there_are(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_green_screen(tmp_path / name, frames=2, width=96, height=64)
    result = restage("a.mp4", "b.mp4", "--preset", "draft", "--background", "beach.jpg", "-o", "out")
    assert result.exit_code == 2
    assert result.output.count("beach.jpg") == 1
    assert not (tmp_path / "out").exists()


def test_missing_weights_stop_the_job_before_it_starts_with_the_command(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", frames=2)
    result = restage("a.mp4", "--preset", "balanced", "--background", "red", "-o", "out")
    assert result.exit_code == 2
    assert "troupe weights fetch realesr-animevideov3 rvm-mobilenetv3" in " ".join(result.output.split())
    assert "nothing is downloaded unasked" in result.output
    assert not (tmp_path / "out").exists()


def test_clip_without_a_screen_is_refused_by_name_in_draft(tmp_path: Path) -> None:
    clip(tmp_path / "dancer.mp4", frames=2)
    result = restage("dancer.mp4", "--preset", "draft", "--background", "red", "-o", "out", "--dry-run")
    assert result.exit_code == 1
    assert "dancer.mp4: its border is not one flat green or blue" in result.output


def test_dry_run_shows_the_plan_and_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip(tmp_path / "a.mp4", frames=60, rate=4, sounds=(Sound(),))
    monkeypatch.setitem(sys.modules, "jobs.perform", None)  # importing it would raise
    result = restage("a.mp4", "--preset", "balanced", "--background", "red", "--dry-run", "-o", "out")
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert "a.mp4: 160x120 → 1440x1080, 60 frames, 15.00 s, 0 cuts, 1 runs, 2 segments" in said
    assert "realesr-animevideov3, matte rvm-mobilenetv3, 1 TFLOP of upscaling" in said
    assert "weights missing: rvm-mobilenetv3 (troupe weights fetch rvm-mobilenetv3)" in said
    assert "nothing was started" in said
    assert not (tmp_path / "out").exists()


def test_dry_run_in_json_is_one_object_a_line(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", frames=60, rate=4)
    (tmp_path / "b.mp4").write_text("no video")
    ended = restage("a.mp4", "b.mp4", *DRAFT, "--dry-run", "--json")
    assert ended.exit_code == 1
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    plan = next(event for event in events if event["event"] == "plan")
    assert (plan["frames"], plan["output_size"], plan["runs"]) == (60, [160, 120], [[[0, 30], [30, 60]]])
    assert [Path(event["input"]).name for event in events if event["event"] == "failed"] == ["b.mp4"]


@pytest.mark.parametrize("relative", ["input", "output", "background"])
def test_relative_paths_are_refused_in_a_submitted_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: str
) -> None:
    path = clip(tmp_path / "a.mp4", frames=2)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    source = "a.mp4" if relative == "input" else path
    output = "out" if relative == "output" else tmp_path / "out"
    background = "stage/beach.mp4" if relative == "background" else "red"
    result = restage(source, "--preset", "draft", "--background", background, "-o", output)
    assert result.exit_code == 2
    assert "is relative, and a submitted job runs in a temporary folder of the cluster" in " ".join(
        result.output.split()
    )


def test_one_cpu_is_enough_for_pins_lanes_and_planning(tmp_path: Path, tiny_weights: Path) -> None:
    write_green_screen(tmp_path / "a.mp4", frames=12, width=96, height=64)
    one = "import functools, sys; import jobs.perform as p; p.connect = functools.partial(p.connect, num_cpus=1); "
    one += "sys.argv[0] = 'restage'; from jobs.restage.command import main; main()"
    arguments = ("a.mp4", "--upscale", "realesr-animevideov3", "--scale", "2", "--matte", "none", "--json", "-o", "out")
    command = Command(*arguments, program=("-c", one), environment={"TROUPE_WEIGHTS": str(tiny_weights)}, cwd=tmp_path)
    ended = command.finish()
    assert ended.code == 0, ended.output + ended.errors
    assert any("local Ray: 1 CPUs" in event.get("text", "") for event in ended.events)
    assert any("pin restage started" in event.get("text", "") for event in ended.events)
    assert [number(frame) for frame in read_rgb(tmp_path / "out" / "a.mp4")] == list(range(12))
    assert command.living() == []


def test_finished_outputs_are_skipped_force_redoes_them_and_preview_shows_them(
    tmp_path: Path, local_ray: Session
) -> None:
    clip(tmp_path / "a.mp4", frames=12)
    with jobs_on(local_ray):
        first = restage("a.mp4", *DRAFT, "--lanes", "1", "-o", "out")
    assert first.exit_code == 0, first.output
    made = (tmp_path / "out" / "a.mp4").read_bytes()
    skipped = restage("a.mp4", *DRAFT, "-o", "out")
    assert skipped.exit_code == 0
    assert "a.mp4: finished before, skipped" in skipped.output
    (tmp_path / "out" / "a.mp4").unlink()
    with jobs_on(local_ray):
        again = restage("a.mp4", *DRAFT, "--lanes", "1", "--force", "--preview", "-o", "out")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "out" / "a.mp4").read_bytes() == made
    assert (tmp_path / "out" / "a.jpg").stat().st_size > 1000


@pytest.mark.parametrize("moment", ["Ray starts", "a segment is encoded"])
def test_interrupt_ends_within_five_seconds_and_leaves_nothing_running(tmp_path: Path, moment: str) -> None:
    write_clip(tmp_path / "a.mp4", frames=90, width=320, height=240)
    # One segment: its file is there from the first packet, which x264 gives when it has looked at sixty frames.
    config = write_config(tmp_path / "config.yaml", batch={"segment_seconds": 8, "lanes": 1}, encode={"threads": 1})
    slow = ("--preset", "draft", "--matte", "none", "--scale", "2", "--x264", "veryslow", "--config", config)
    command = Command("a.mp4", *slow, "-o", "out", cwd=tmp_path)
    if moment == "Ray starts":
        wait_until(lambda: any("raylet" in line for line in command.living()), moment)
    else:
        wait_until(lambda: list(tmp_path.glob("out/.troupe/*/.*.mp4.*.part")), moment)
    begun = time.monotonic()
    os.killpg(command.process.pid, signal.SIGINT)  # as a terminal does: to everything in the foreground
    ended = command.finish()
    took = time.monotonic() - begun
    assert ended.code == 130, ended.errors
    assert "run the same command again to go on" in ended.output
    wait_until(lambda: not command.living(), "all its processes to end", 20)
    # Others may be at work on this machine; alone it takes two.
    assert took < 5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
