"""`troupe up`, `status` and `down` with one logical GPU, and every way in which a job that does not fit is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from cli.main import app
from cluster.processes import end_tree
from tests.cli.standing.live import Ray, environment, joined
from tests.jobs.command import wait_until

pytestmark = pytest.mark.ray


def lives(process: psutil.Process) -> bool:
    """Not ended; one that nobody has waited for has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_up_starts_ray_and_every_pin_and_status_shows_them(up: Ray) -> None:
    assert "2 CPUs, 1 GPU" in up.said
    assert "pin alpha started (process" in up.said
    (shown,) = (line.split() for line in up.run("status").splitlines() if line.startswith("alpha"))
    assert shown[:3] == ["alpha", "RUNNING", *map(str, up.pids)]
    assert shown[4:6] == ["0", "0.6"]
    token = up.folder / "token"
    assert token.stat().st_mode & 0o077 == 0


def test_up_again_leaves_alone_what_runs_as_configured_and_replaces_what_does_not(up: Ray) -> None:
    before = up.pids
    assert "runs as it did" in up.up(up.config(alpha={"num_gpus": 0.6}))
    assert up.pids == before
    assert "was replaced" in up.up(up.config(alpha={"num_gpus": 0.6, "tile": 512}))
    assert not up.pids & before


def test_up_of_what_does_not_fit_is_refused_with_the_table_and_changes_nothing(up: Ray) -> None:
    said = up.run(
        "up", "--config", up.config(alpha={"num_gpus": 0.6}, beta={"num_gpus": 0.6, "models": ["selfie"]}), code=1
    )
    assert "GPU: the pins take 1.2 of 1 GPU" in said
    assert "0.60 (given)" in said
    assert up.running() == up.pids


def test_job_that_does_not_fit_is_refused_within_a_second_with_the_table_and_leaves_nothing(up: Ray) -> None:
    seen = joined(up.folder, "main")
    gpu, cpu, store, other = (seen[name] for name in ("gpu", "cpu", "store", "other"))
    assert "GPU: the pins take 0.6 of 1 GPU, of which others hold 0.6" in gpu["error"]
    assert "application alpha (process" in gpu["error"]
    assert "0.60 (given)" in gpu["error"]
    assert "CPUs: 2.4 are needed, and Ray has 2" in cpu["error"]
    assert "pin beta" in cpu["error"]
    assert "held by others" in cpu["error"]
    assert "object store: " in store["error"]
    assert "MiB, from pin beta" in store["error"]
    assert "of which others hold 0.9" in other["error"]
    assert "actor Trainer" in other["error"]
    for each in (gpu, cpu, store, other):
        assert each["left"] == []
        assert each["seconds"] < 1, each
    assert set(seen["deploy"]) == {"gamma0", "gamma1"}
    for told in seen["deploy"].values():
        assert told.startswith("DEPLOY_FAILED")
        assert "Traceback" not in told
        assert "the pins take 0.5 of 1 GPU, of which others hold 0.6" in told
    assert seen["deploy_left"] == []


@pytest.fixture
def second_node(up: Ray) -> Iterator[None]:
    """A node with a GPU of its own joins, and leaves."""
    address = up.record["address"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--block"]
    command += ["--num-cpus=1", "--num-gpus=1", "--object-store-memory=80000000"]
    log = up.folder / "second.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=up.folder,
            env={**environment(up.folder), "RAY_AUTH_MODE": "token", "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "--block" in log.read_text() or process.poll() is not None, "the second node")
        assert process.poll() is None, log.read_text()
        yield
    finally:
        end_tree(process.pid, 0.5)
        process.wait()


@pytest.mark.usefixtures("second_node")
def test_node_that_joins_is_used_at_the_next_up_and_paths_and_weights_are_looked_after(up: Ray) -> None:
    config = up.config(alpha={"num_gpus": 0.6, "replicas": "per_gpu", "tile": 512})
    before = up.pids
    said = up.up(config)
    assert "3 CPUs, 2 GPU" in said
    assert "1 of 2 kept" in said
    assert before < up.pids
    replicas = json.loads(up.run("status", "--json"))["replicas"]
    assert {replica["pid"] for replica in replicas} == up.pids
    shown = [tuple(replica[name] for name in ("pin", "state", "gpu_ids", "share")) for replica in replicas]
    assert shown == [("alpha", "RUNNING", [0], 0.6)] * 2

    seen = joined(up.folder, "on_two_nodes")
    assert seen["nodes"] == 2
    assert "/proc/self/cwd/there: is not there on node" in seen["output"]
    assert "/proc/self/cwd/there/a.pth: is not there on node" in seen["input"]
    assert "a.pth: is not on node" in seen["damaged"]
    assert "it arrived damaged; run `troupe weights fetch` there" in seen["damaged"]
    assert all("a.pth copied to node" in line for line in seen["copied"])
    assert seen["copied"]
    assert seen["again"] == []
    assert seen["left"] == ["a.pth"]


def test_down_ends_all_of_it(up: Ray) -> None:
    processes = up.processes()
    assert len(processes) > 5
    assert "ended Ray" in up.run("down")
    assert [process for process in processes if lives(process)] == []
    assert "nothing is up" in up.run("down")
    assert "none was started by `troupe up` here" in up.run("status", code=1)


def test_what_cannot_fit_is_refused_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Ray(tmp_path).config(alpha={"num_gpus": 0.6}, beta={"num_gpus": 0.6, "models": ["selfie"]})
    environ = environment(tmp_path)
    for name in os.environ.keys() - environ.keys():
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, ["up", "--config", config, "--num-gpus", "1"])
    assert done.exit_code == 1
    assert "the pins take 1.2 of 1 GPU" in done.stderr
    assert not (tmp_path / "cache").exists()
