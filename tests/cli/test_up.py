"""`troupe up`, `status` and `down` with one logical GPU, and every way in which a job that does not fit is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cluster.processes import end_tree
from tests.jobs.command import wait_until

ROOT = Path(__file__).resolve().parents[2]
TROUPE = ("-c", "from cli.main import app; app()")

pytestmark = pytest.mark.ray


@dataclass
class Ray:
    """The Ray that `troupe up` started.

    Attributes:
        folder: caches, token, configuration.
        said: what `up` printed first.
        pids: processes of the pin after the last `up`, as it told them.
    """

    folder: Path
    said: str = ""
    pids: set[int] = field(default_factory=set)

    def run(self, *words: str, code: int = 0) -> str:
        """A command's standard output, or its standard error when it is to fail."""
        done = execute(self.folder, *TROUPE, *words)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    def up(self, config: str, *words: str) -> str:
        """What `up` prints of a configuration that fits."""
        said = self.run("up", "--config", config, *words)
        (told,) = re.findall(r"pin alpha .*\(process ([\d, ]+)\)", said)
        self.pids = {int(pid) for pid in told.split(", ")}
        return said

    def config(self, **pins: dict[str, Any]) -> str:
        """A configuration file with these pins."""
        applications = [
            {
                "name": name,
                "route_prefix": None,
                "import_path": "actors.pin:build",
                "args": {"name": name, "models": ["realesr-animevideov3"], **settings},
            }
            for name, settings in pins.items()
        ]
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump({"applications": applications}))
        return str(path)

    def replicas(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("status", "--json"))["replicas"]
        return found


def execute(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python process that knows nothing of the user's caches, tokens and Rays."""
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=250, check=False
    )


def environment(folder: Path) -> dict[str, str]:
    """Nothing of the user's but what every program needs."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TROUPE_"))}
    return environ | {
        "TROUPE_LOGICAL_GPUS": "1",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "RAY_AUTH_TOKEN_PATH": str(folder / "ray" / "token"),
        "COLUMNS": "200",
    }


def joined(folder: Path, function: str) -> dict[str, Any]:
    """What a function of `tests.joining` saw in a process that joins the Ray that is up."""
    script = f"""
import os, sys, pathlib
from cluster.session import use_token
from cluster.standing import join_standing
assert join_standing(os.environ)
use_token(os.environ)
from tests.joining import {function}
{function}(pathlib.Path(sys.argv[1]))
"""
    done = execute(folder, "-c", script, str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def lives(process: psutil.Process) -> bool:
    """Not ended; one that nobody has waited for has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    """One Ray for this module, with a pin that holds 0.6 of a GPU that is only a number."""
    ray = Ray(tmp_path_factory.mktemp("up"))
    try:
        ray.said = ray.up(ray.config(alpha={"num_gpus": 0.6}), "--num-cpus", "2", "--num-gpus", "1")
        yield ray
    finally:
        execute(ray.folder, *TROUPE, "down")


def test_up_starts_ray_and_every_pin_and_status_shows_them(up: Ray) -> None:
    assert "2 CPUs, 1 GPU" in up.said
    assert "pin alpha started (process" in up.said
    (replica,) = up.replicas()
    assert {replica["pid"]} == up.pids
    assert (replica["pin"], replica["state"], replica["gpu_ids"], replica["share"]) == ("alpha", "RUNNING", [0], 0.6)
    assert "alpha" in up.run("status")
    token = up.folder / "ray" / "token"
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
    assert {replica["pid"] for replica in up.replicas()} == up.pids


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
        assert "the pins take 0.5 of 1 GPU, of which others hold 0.6" in told
    assert seen["deploy_left"] == []


@pytest.fixture
def second_node(up: Ray) -> Iterator[None]:
    """A node with a GPU of its own joins, and leaves."""
    address = json.loads((up.folder / "cache" / "troupe" / "ray.json").read_text())["address"]
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
    replicas = up.replicas()
    assert {replica["pid"] for replica in replicas} == up.pids
    assert [(replica["gpu_ids"], replica["share"]) for replica in replicas] == [([0], 0.6), ([0], 0.6)]

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
    record = json.loads((up.folder / "cache" / "troupe" / "ray.json").read_text())
    processes = [psutil.Process(record["pid"]), *psutil.Process(record["pid"]).children(recursive=True)]
    assert len(processes) > 5
    assert "ended Ray" in up.run("down")
    assert [process for process in processes if lives(process)] == []
    assert "nothing is up" in up.run("down")
    assert "none was started by `troupe up` here" in up.run("status", code=1)


def test_what_cannot_fit_is_refused_before_ray_starts(tmp_path: Path) -> None:
    ray = Ray(tmp_path)
    config = ray.config(alpha={"num_gpus": 0.6}, beta={"num_gpus": 0.6, "models": ["selfie"]})
    said = ray.run("up", "--config", config, "--num-gpus", "1", code=1)
    assert "the pins take 1.2 of 1 GPU" in said
    assert not (tmp_path / "cache").exists()
