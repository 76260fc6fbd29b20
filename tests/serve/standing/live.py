"""The service on a Ray of its own, brought up and down as its operator does, and killed as no operator does.

    with living() as live:
        live.up()
        httpx2.post(f"{live.base}/v1/tasks", files={"file": clip.read_bytes()})
        live.kill("ray::ServeReplica:service:Runner")

Its chain is light (lanczos, chroma key, a colour), so it needs no weights, and no pins unless a test adds some.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import yaml

from bench.processes import Process, tree
from cluster.config import load_config
from cluster.processes import started_at
from tests.apart import TROUPE, environment
from tests.jobs.command import PATIENCE, wait_until
from tests.jobs.inprocess import restage
from tests.media import Look, write_green_screen

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
SECRET = "whsec_" + b64encode(secrets.token_bytes(32)).decode()
#: So many kills may hit one task by chance; the usual three would make its end a lottery.
ATTEMPTS = 20
_COMMAND_SECONDS = 250


class Live:
    """A service and the Ray that it runs on.

    Args:
        folder: everything of it; with a short path, for Ray's sockets.
        service: its settings, beside those that tests need.
        environ: of its processes.
    """

    def __init__(self, folder: Path, service: Mapping[str, Any] | None = None, **environ: str) -> None:
        self.folder, self.port = folder, _free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.service: dict[str, Any] = {
            "data": str(folder / "data"),
            "runners": 1,
            "lease_s": LEASE_SECONDS,
            "attempts": ATTEMPTS,
            "preset": "light",
            **(service or {}),
        }
        self.environ = environment(folder, **environ)

    @property
    def path(self) -> Path:
        """Its configuration file."""
        return self.folder / "ray-config.yaml"

    @property
    def data(self) -> Path:
        """The folder of its tasks."""
        return Path(self.service["data"])

    @property
    def database(self) -> str:
        """URL of its database."""
        return self.service.get("database") or f"sqlite:///{self.data / 'troupe.db'}"

    def up(self) -> str:
        """`troupe up`; what it said."""
        return self.run("up", "--config", str(self._config()), "--num-cpus", "2")

    def revive(self) -> None:
        """`troupe up` as whoever supervises it does: again if need be, for Ray gives up early on a busy machine."""
        for tries_left in (2, 1, 0):
            try:
                self.up()
                return
            except AssertionError:
                if not tries_left:
                    raise

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

    def submit(self, client: httpx2.Client, clip: Path, **fields: str) -> str:
        """Uploads a clip; the id of its task."""
        with clip.open("rb") as file:
            answer = client.post("/v1/tasks", files={"file": (clip.name, file)}, data=fields)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def insist(self, client: httpx2.Client, clip: Path, **fields: str) -> str:
        """Uploads a clip until it is accepted, whatever happens meanwhile, as `Idempotency-Key` is for; its id."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        deadline = time.monotonic() + PATIENCE
        while True:
            assert time.monotonic() < deadline, f"not accepted within {PATIENCE:.0f} s"
            try:
                files = {"file": (clip.name, clip.read_bytes())}
                answer = client.post("/v1/tasks", files=files, data=fields, headers=headers)
            except httpx2.TransportError:
                time.sleep(0.2)
                continue
            if answer.status_code == 202:
                return str(answer.json()["id"])
            assert answer.status_code in (409, 429, 503), answer.text
            time.sleep(0.2)

    def finished(self, client: httpx2.Client, task_id: str) -> dict[str, Any]:
        """The task once it has ended."""

        def ended() -> dict[str, Any] | None:
            time.sleep(0.1)
            with suppress(httpx2.TransportError):
                found: dict[str, Any] = client.get(f"/v1/tasks/{task_id}").json()
                return found if found["state"] in ("done", "failed", "cancelled") else None
            return None

        found: dict[str, Any] = wait_until(ended, f"the end of {task_id}")
        return found

    def segments(self, task_id: str) -> dict[int, tuple[int, int]]:
        """Finished segments of a task that runs: inode and time of change of each, by index."""
        found = {}
        for journal in (self.data / "tasks" / task_id / "work").glob("*/run-*.jsonl"):
            with suppress(FileNotFoundError):
                indices = [json.loads(line)["index"] for line in journal.read_bytes().splitlines()]
                assert len(indices) == len(set(indices)), f"a segment was done twice: {indices}"
                for index in indices:
                    status = (journal.parent / f"{index:05d}.mp4").stat()
                    found[index] = (status.st_ino, status.st_mtime_ns)
        return found

    def worker(self, task_id: str) -> int | None:
        """Pid of the runner that is at work on a task: it holds the lock of its folder."""
        with suppress(FileNotFoundError):
            inode = (self.data / "tasks" / task_id / "work" / "lock").stat().st_ino
            for line in Path("/proc/locks").read_text().splitlines():
                fields = line.split()
                if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
                    return int(fields[4])
        return None

    def expected(self, clip: Path, folder: Path) -> bytes:
        """What a lane in this process makes of a clip with the same settings."""
        task, _ = restage(clip, folder, load_config(self._config()), preset=self.service["preset"])
        return task.output.read_bytes()

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
        self.path.write_text(yaml.safe_dump(document))
        return self.path


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


def write_dancer(path: Path, seconds: int = 2, first: int = 0) -> Path:
    """A small clip of a figure before green, with sound: two segments a second. `first` makes it another one."""
    write_green_screen(path, frames=12 * seconds, width=64, height=64, rate=12, look=Look(bars=False), first=first)
    return path


def _free_port() -> int:
    """A port that nobody gets by chance: it lies below those that the kernel hands out, and is used again and again."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
