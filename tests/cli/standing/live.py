"""The Ray that `troupe up` starts, and commands that know nothing of the user's caches, tokens and Rays."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests import apart
from tests.apart import TROUPE


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

    @property
    def record(self) -> dict[str, Any]:
        """What `up` wrote down of it."""
        found: dict[str, Any] = json.loads((self.folder / "cache" / "troupe" / "ray.json").read_text())
        return found

    def processes(self) -> list[psutil.Process]:
        """All of it, the first one first."""
        first = psutil.Process(self.record["pid"])
        return [first, *first.children(recursive=True)]

    def running(self) -> set[int]:
        """Pids of replicas, whosever."""
        return {each.pid for each in self.processes() if "".join(each.cmdline()).startswith("ray::ServeReplica:")}


def execute(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python process that knows nothing of the user's caches, tokens and Rays."""
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=250, check=False
    )


def environment(folder: Path) -> dict[str, str]:
    """One in which a GPU may be only a number."""
    return apart.environment(folder, TROUPE_LOGICAL_GPUS="1")


def joined(folder: Path, function: str) -> dict[str, Any]:
    """What a function of `tests.cli.standing.joining` saw in a process that joins the Ray that is up."""
    script = f"""
import os, sys, pathlib
from cluster.session import use_token
from cluster.standing import join_standing
assert join_standing(os.environ)
use_token(os.environ)
from tests.cli.standing.joining import {function}
{function}(pathlib.Path(sys.argv[1]))
"""
    done = execute(folder, "-c", script, str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
