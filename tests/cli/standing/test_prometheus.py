"""What `troupe up` started, and a job that joins it, in a real Prometheus with the shipped configuration."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.metrics import TABLE
from tests.apart import ROOT
from tests.cli.standing.live import Ray, environment
from tests.cluster.reporting import JOB, PIN
from tests.cluster.test_monitoring import FOLDER, queries, series_of, text_of, tool
from tests.jobs.command import wait_until
from tests.media import write_clip

Ask = Callable[[str], list[dict[str, Any]]]
MODEL = "realesr-animevideov3"

pytestmark = pytest.mark.ray


@pytest.fixture
def prometheus() -> str:
    """Prometheus' path; asked for before Ray is started."""
    return tool("prometheus")


@pytest.fixture
def ask(prometheus: str, up: Ray, tmp_path: Path) -> Iterator[Ask]:
    """Asks a Prometheus that scrapes what is up."""
    config = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
    changed = config.replace("/tmp/ray/", f"{up.folder}/ray/ray/")  # where RAY_TMPDIR puts it
    assert changed != config
    (tmp_path / "prometheus.yml").write_text(changed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with (tmp_path / "prometheus.log").open("w") as log:
        process = subprocess.Popen([prometheus, *arguments, f"--web.listen-address=127.0.0.1:{port}"], stderr=log)

    def found(query: str) -> list[dict[str, Any]]:
        time.sleep(0.05)  # it scrapes every few seconds
        address = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            answer = json.loads(text_of(address))
        except OSError:
            return []  # it is starting
        assert answer["status"] == "success", query
        return list(answer["data"]["result"])

    yield found
    process.kill()
    process.wait()


@pytest.fixture
def reporting(prometheus: str, up: Ray, tmp_path: Path) -> Iterator[None]:  # noqa: ARG001 - no Ray without Prometheus
    """A stand-in for everything that reports is up too."""
    with (tmp_path / "reporting.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.reporting"],
            env={**environment(up.folder), "RAY_ADDRESS": up.record["address"], "RAY_AUTH_MODE": "token"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
        )
    assert process.stdout is not None
    assert process.stdout.readline() == "reporting\n", (tmp_path / "reporting.log").read_text()
    yield
    process.communicate(timeout=60)


@pytest.fixture
def weights(up: Ray, tiny_weights: Path) -> Iterator[None]:
    """The pin's weights are there."""
    folder = up.folder / "cache" / "troupe" / "weights"
    shutil.copytree(tiny_weights, folder)
    yield
    shutil.rmtree(folder)


@pytest.mark.usefixtures("reporting", "weights")
def test_prometheus_scrapes_what_is_up_and_a_job_that_joins_it(ask: Ask, up: Ray, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=24, rate=12, width=64, height=48).path
    chosen = ("--upscale", MODEL, "--matte", "none", "--target", "2", "--config", str(up.folder / "config.yaml"))
    assert "done" in up.run("restage", str(clip), "-o", str(tmp_path / "out"), *chosen)

    # What the pin did, and what a pin reports that has seen everything.
    done = f'ray_troupe_pin_frames_total{{model="{MODEL}"}}'
    wait_until(lambda: [item["value"][1] for item in ask(done)] == ["24"], "the frames of the pin", 90)
    for metric in TABLE:
        for name in series_of(metric):
            wait_until(lambda name=name: ask(name), f"{name} in Prometheus", 90)  # type: ignore[misc]
    assert [item["value"][1] for item in ask(f'ray_troupe_pin_frames_total{{pin="{PIN}"}}')] == ["8"]
    # What the job reported before it ended: all of its frames.
    frames = f'ray_troupe_job_frames_total{{job_id!="{JOB}"}}'
    assert [item["value"][1] for item in wait_until(lambda: ask(frames), "the job's frames")] == ["24"]
    # What the dashboard asks finds something, once there are two scrapes to make a rate of.
    for query in queries():
        wait_until(lambda query=query: ask(query), f"an answer to {query}", 90)  # type: ignore[misc]
