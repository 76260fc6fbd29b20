"""The service on a Ray of its own, brought up and down as its operator does, and killed as no operator does.

    with living(port=free_port()) as live:
        live.up()
        httpx2.post(f"{live.base}/v1/tasks", files={"file": clip.read_bytes()})
        live.kill("ray::ServeReplica:service:Runner")

Its chain is light (lanczos, chroma key, a colour), so it needs no weights, and no pins unless a test adds some.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import yaml

from bench.processes import Process, tree
from cluster.processes import started_at
from tests.jobs.command import ROOT, wait_until

TROUPE = ("-c", "from cli.main import app; app()")
RUNNER, EXPRESS, INGRESS, CONTROLLER, RAYLET, GCS = (
    "ray::ServeReplica:service:Runner",
    "ray::ServeReplica:service:ExpressRunner",
    "ray::ServeReplica:service:Ingress",
    "ray::ServeController",
    "raylet",
    "gcs_server",
)
#: Half a second of a clip is a segment; a 64 pixel clip takes about a second.
PRESET = {"upscale": "lanczos", "target": "2", "matte": "chroma", "background": "#20405f", "crf": 30}
LEASE_SECONDS = 4
_COMMAND_SECONDS = 250


class Live:
    """A service and the Ray that it runs on.

    Args:
        folder: everything of it; with a short path, for Ray's sockets.
        service: its settings, beside those that tests need.
        environ: of its processes.
    """

    def __init__(self, folder: Path, service: Mapping[str, Any] | None = None, **environ: str) -> None:
        self.folder, self.data, self.port = folder, folder / "data", _free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.service: dict[str, Any] = {
            "data": str(self.data),
            "runners": 2,
            "lease_s": LEASE_SECONDS,
            "preset": "light",
            **(service or {}),
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TROUPE_"))}
        self.environ = inherited | {
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_TMPDIR": str(folder / "ray"),
            "COLUMNS": "200",
            **environ,
        }

    def up(self) -> str:
        """`troupe up`; what it said."""
        return self.run("up", "--config", str(self._config()), "--num-cpus", "2")

    def down(self) -> str:
        """`troupe down`; what it said."""
        return self.run("down", "--config", str(self._config()))

    def run(self, *words: str) -> str:
        """A `troupe` command's standard output."""
        done = subprocess.run(
            [sys.executable, *TROUPE, *words],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def client(self, **options: Any) -> httpx2.Client:
        """Of its API."""
        return httpx2.Client(base_url=self.base, timeout=options.pop("timeout", 60), **options)

    def processes(self, name: str = "") -> list[Process]:
        """Its living processes whose names begin so: all have its folder for their working directory."""
        return [each for each in tree(1) if each.name.startswith(name) and self._owns(each.pid)]

    def kill(self, name: str, dice: random.Random | None = None) -> int | None:
        """SIGKILL for one of them; its pid, None when there is none."""
        found = [each.pid for each in self.processes(name)]
        if not found:
            return None
        pid = (dice or random).choice(found)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return pid

    def kill_all(self) -> None:
        """SIGKILL for every process of it, as when the machine loses power."""
        while found := self.processes():
            for each in found:
                with suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)
            time.sleep(0.05)

    def await_gone(self, seconds: float = 60) -> None:
        """Returns when nothing of it lives any more."""
        wait_until(lambda: not self.processes(), f"the end of {[each.name for each in self.processes()]}", seconds)

    def logs(self) -> str:
        """What its replicas wrote."""
        found = sorted((self.folder / "ray").glob("session_2*/logs/worker-*.err"))
        return "\n".join(path.read_text(errors="replace") for path in found)

    def _owns(self, pid: int) -> bool:
        with suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink() == self.folder and started_at(pid) is not None
        return False

    def _config(self) -> Path:
        troupe = {
            "batch": {"segment_seconds": 0.5, "batch_frames": 4},
            "encode": {"threads": 1},
            "governor": {"min_free_gib": 0},  # however full the test machine's disk is
            "service": self.service,
            "presets": {"light": {**PRESET, "x264": "ultrafast"}},
        }
        http = {"host": "127.0.0.1", "port": self.port}
        application = {"name": "service", "route_prefix": None, "import_path": "serve.app:build"}
        document = {
            "proxy_location": "Disabled",
            "http_options": http,
            "troupe": troupe,
            "applications": [{**application, "args": {"http": http, "troupe": troupe, "pins": []}}],
        }
        path = self.folder / "ray-config.yaml"
        path.write_text(yaml.safe_dump(document))
        return path


@contextmanager
def living(service: Mapping[str, Any] | None = None, **environ: str) -> Iterator[Live]:
    """A service that is not up yet; nothing of it is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="troupe-", dir="/tmp")).resolve()
    live = Live(folder, service, **environ)
    try:
        yield live
    finally:
        live.kill_all()
        if kept := os.environ.get("TROUPE_TEST_KEEP"):
            shutil.copytree(folder, kept, dirs_exist_ok=True, symlinks=True, ignore=shutil.ignore_patterns("sockets"))
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    """A port that nobody gets by chance: it lies below those that the kernel hands out, and is used again and again."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
