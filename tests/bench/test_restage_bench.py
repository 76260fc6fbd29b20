"""The bench of restaging runs every part on real jobs and counts what it says it counts. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av import VideoFrame

from actors.matte import border_screen
from actors.video.limits import Limits
from actors.video.own import create_mp4
from actors.video.scan import scan
from bench.clip import PERIOD, drawn, write_clip
from bench.memory import measure_job
from bench.models import LIGHT, MATTE
from bench.processes import cpu_by_name, pss_by_name, tree
from bench.restage import main
from bench.written import counting
from tests.conftest import SoakCount

pytestmark = pytest.mark.ray


Row = dict[str, Any]


@pytest.mark.soak
@pytest.mark.usefixtures("on_local_ray")
def test_every_part_runs_real_jobs_and_counts_what_it_says(
    soak_count: SoakCount, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = dict(list(CHECKS.items())[: soak_count(1, len(CHECKS))])
    tiny = ["--networks", "light", "--frames", "2", "--rounds", "1", "--threads", "1", "--pins", "one", "--json"]
    main([*tiny, "--part", *checks])
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["cpu"]
    assert {row["part"] for row in report["rows"]} == set(checks)
    for row in report["rows"]:
        checks[row["part"]](row)


def check_networks(row: Row) -> None:
    """The job and its bare networks did the same frames."""
    assert row["frames"] == 2
    assert row["ratio"] == pytest.approx(row["job_fps"] / row["bare_fps"])
    assert set(row["stage_seconds"]) >= {"decode", LIGHT.upscale, MATTE, "compose", "encode"}
    assert row["startup_s"] > 0


def check_recipe(row: Row) -> None:
    """The recipe took every step and left more bytes than its result."""
    assert set(row["recipe_seconds"]) == {
        "decode to PNG", "upscale folder", "encode", "matte, encode", "overlay, encode"
    }  # fmt: skip
    assert all(seconds > 0 for seconds in row["recipe_seconds"].values())
    assert row["bytes_ratio"] == pytest.approx(row["recipe_bytes"] / row["job_bytes"])
    assert row["ratio"] == pytest.approx(row["recipe_s"] / row["job_s"])


def check_graph(row: Row) -> None:
    """The draft and the graph were paced without their start."""
    assert row["frames"] == 80
    assert row["ratio"] == pytest.approx(row["job_fps"] / row["graph_fps"])
    assert row["job_cpu_ms"]
    assert row["graph_cpu_ms"] > 0


CHECKS = {"c": check_graph, "a": check_networks, "b": check_recipe}


@pytest.mark.soak
def test_memory_covers_driver_ray_and_lane(tmp_path: Path, soak_count: SoakCount) -> None:
    soak_count(1, 1)
    write_clip(tmp_path / "clip.mp4", 60, (160, 120))
    choices = ["--preset", "draft", "--background", "#20405f", "--lanes", "1", "-o", str(tmp_path / "out")]
    found = measure_job([str(tmp_path / "clip.mp4"), *choices], {}, settle=0)
    assert found.samples
    assert {"jobs.restage", "raylet", "ray::MapWorker"} <= set(found.by_name)
    assert 100 * 2**20 < found.mean <= found.peak


def test_long_clip_repeats_its_period_without_a_gap(tmp_path: Path) -> None:
    frames = write_clip(tmp_path / "long.mp4", PERIOD + 1, (64, 48))
    found = scan(tmp_path / "long.mp4", Limits(), workdir=tmp_path)
    assert frames == len(found) == 2 * PERIOD
    assert set(np.diff(found.pts) * found.info.time_base) == {Fraction(1, 30)}
    (sound,) = found.info.sounds
    assert sound.codec == "aac"


def test_clip_has_a_green_screen() -> None:
    assert border_screen(next(drawn((320, 240)))) == "green"


def test_bytes_of_every_closed_file_are_counted(tmp_path: Path) -> None:
    with counting([tmp_path]) as written:
        (tmp_path / "a.bin").write_bytes(bytes(1000))
        (tmp_path / "c.bin").write_bytes(bytes(500))
        (tmp_path / "b.part").write_bytes(bytes(30))
        (tmp_path / "b.part").rename(tmp_path / "b.bin")
        for _ in range(3):
            with (tmp_path / "journal.jsonl").open("ab") as journal:
                journal.write(bytes(7))
        (tmp_path / "a.bin").read_bytes()
    assert (written.bytes, written.lost) == (1000 + 500 + 30 + 3 * 7, [])


@pytest.mark.parametrize(("moved", "times"), [("", 1), ("+faststart", 2)])
def test_an_index_moved_to_the_front_counts_its_media_twice(tmp_path: Path, moved: str, times: int) -> None:
    path = tmp_path / "clip.mp4"
    with counting([tmp_path]) as written, create_mp4(path, {"movflags": moved} if moved else {}) as out:
        stream: Any = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for frame in _noise(20):
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert written.bytes / path.stat().st_size == pytest.approx(times, rel=0.05)


def test_processes_are_found_below_their_root_and_named() -> None:
    child = subprocess.Popen([sys.executable, "-m", "timeit", "-n", "1", "input()"], stdin=subprocess.PIPE)
    try:
        (found,) = [process for process in tree(child.pid) if process.pid == child.pid]
        assert {process.pid for process in tree(child.pid)} == {child.pid}
        assert found.name in ("timeit", Path(sys.executable).name)
        assert list(cpu_by_name(child.pid)) == [(found.pid, found.started)]
        assert sum(pss_by_name(child.pid).values()) > 0
    finally:
        child.communicate(b"\n")
    assert tree(child.pid) == []


@pytest.mark.parametrize(
    "arguments",
    [["--part", "e"], ["--heavy", "lanczos@64x48"], ["--heavy", "realesrgan-x4plus@big"], ["--frames", "0"]],
    ids=" ".join,
)
def test_nonsense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert arguments[0] in capsys.readouterr().err


def _noise(frames: int) -> Iterator[Any]:
    generator = np.random.default_rng(3)
    for index in range(frames):
        frame = VideoFrame.from_ndarray(generator.integers(0, 255, (240, 320, 3), np.uint8), format="rgb24")
        frame.pts = index
        yield frame
