"""The Ray of this machine that outlives commands: `troupe up` starts it, `troupe down` ends it, jobs find it by a file.

It is `ray start --head --block` in a session of its own, with what Troupe needs of every Ray: dead objects freed at
once, a token demanded of clients, the dashboard on this machine alone.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.errors import ClusterError
from cluster.files import written_whole
from cluster.processes import end_tree, started_at
from cluster.session import FREE_OBJECTS, joins
from cluster.weights import cache_folder

_START_SECONDS = 90
_STOP_SECONDS = 15
_PORT, _CLIENT_PORT = 6379, 10001  # Ray's own; where somebody has one, any other is taken
_ADDRESS = re.compile(r"--address='([^']+)'")


@dataclass(frozen=True, slots=True)
class Standing:
    """A Ray that `troupe up` started.

    Attributes:
        pid, started: its first process.
        address: where drivers join it.
    """

    pid: int
    started: int
    address: str


def standing(environ: Mapping[str, str]) -> Standing | None:
    """The Ray that runs here because of `troupe up`, None if there is none."""
    try:
        found = Standing(**json.loads(_record(environ).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return found if started_at(found.pid) == found.started else None


def join_standing(environ: MutableMapping[str, str]) -> bool:
    """Lets this process join it, unless RAY_ADDRESS says something else already; to be called before `ray` is imported.

    A second Ray beside it would count the same GPU again. `RAY_ADDRESS=local` starts one all the same.
    """
    found = None if joins(environ) or environ.get("RAY_ADDRESS") else standing(environ)
    if found is None:
        return False
    environ["RAY_ADDRESS"] = found.address
    return True


def start(environ: Mapping[str, str], *, num_cpus: int | None = None, num_gpus: int | None = None) -> Standing:
    """Starts a Ray that outlives this process.

    Args:
        environ: of the new Ray, beside what Troupe sets.
        num_cpus, num_gpus: what it is told that it has; None lets it count.

    Raises:
        ClusterError: it did not come up; the text carries Ray's last lines.
    """
    token = _ensure_token(environ)
    log = cache_folder(environ) / "ray-start.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={_free_port(_PORT)}", "--dashboard-host=127.0.0.1"]
    # Its server for Ray Client cannot be left away, and would take all of Ray down when somebody has its port.
    command += [f"--ray-client-server-port={_free_port(_CLIENT_PORT)}"]
    command += [] if num_cpus is None else [f"--num-cpus={num_cpus}"]
    command += [] if num_gpus is None else [f"--num-gpus={num_gpus}"]
    settings = {f"RAY_{name}": str(value) for name, value in FREE_OBJECTS.items()}
    settings |= {"RAY_AUTH_MODE": "token"} if token else {}
    # A head that ends with all its work has nothing to wait for.
    settings |= {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    inherited = {name: value for name, value in environ.items() if name != "RAY_ADDRESS"}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**inherited, **settings},
            start_new_session=True,
        )
    try:
        address = _await_address(process, log)
    except BaseException:
        end_tree(process.pid, 1)
        raise
    found = Standing(process.pid, started_at(process.pid) or 0, address)
    with written_whole(_record(environ)) as partial:
        partial.write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found


def stop(environ: Mapping[str, str]) -> Standing | None:
    """Ends the Ray that `troupe up` started, with all that runs in it; None if there is none."""
    found = standing(environ)
    if found is not None:
        end_tree(found.pid, _STOP_SECONDS)
    _record(environ).unlink(missing_ok=True)
    return found


def _record(environ: Mapping[str, str]) -> Path:
    return cache_folder(environ) / "ray.json"


def _ensure_token(environ: Mapping[str, str]) -> bool:
    """Whether clients must present a token, as they must unless RAY_AUTH_MODE says otherwise; makes one if need be."""
    if environ.get("RAY_AUTH_MODE", "token") != "token":
        return False
    if environ.get("RAY_AUTH_TOKEN"):
        return True
    path = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        # As `ray get-auth-token --generate` makes it, but for nobody else to read.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return True


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("", port))
            except OSError:
                continue
            return int(trial.getsockname()[1])
    raise ClusterError("Ray", "no port is free on this machine", remedy="end something that listens")


def _await_address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        text = log.read_text(encoding="utf-8", errors="replace")
        # Printed once everything runs; what follows `--block` is the last of it.
        if "--block" in text and (found := _ADDRESS.search(text)):
            return found[1]
        if process.poll() is not None or time.monotonic() > deadline:
            last = " ".join(text.split())[-400:]
            raise ClusterError(
                "Ray", f"did not start: {last or 'it said nothing'}", remedy=f"see {log}, `troupe doctor`"
            )
        time.sleep(0.1)
