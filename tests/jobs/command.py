"""Running `python -m jobs.restage` as a user does, and seeing every process that it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
#: Nothing here may take as long; a machine so slow fails loudly instead of hanging.
PATIENCE = 240.0
#: Name of the environment variable that a command's descendants inherit.
MARK = "TROUPE_TEST_MARK"


@dataclass(frozen=True)
class Ended:
    """A command that ended by itself."""

    code: int
    output: str
    errors: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of `--json`, each of which must parse."""
        return [json.loads(line) for line in self.output.splitlines()]


class Command:
    """A running restaging whose descendants, however detached, can be listed."""

    def __init__(
        self,
        *arguments: object,
        environment: dict[str, str] | None = None,
        cwd: Path = ROOT,
        program: tuple[str, ...] = ("-m", "jobs.restage"),
    ) -> None:
        self._mark = uuid.uuid4().hex
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TROUPE_"))}
        self.process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**clean, "PYTHONPATH": str(ROOT), MARK: self._mark, **(environment or {})},
            start_new_session=True,
        )

    def finish(self) -> Ended:
        """Waits for its end."""
        try:
            output, errors = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            output, errors = self.process.communicate()
            raise AssertionError(f"no end within {PATIENCE:.0f} s\n{output}\n{errors}") from None
        return Ended(self.process.returncode, output, errors)

    def kill(self) -> None:
        """SIGKILL for this one process alone; what it started must end by itself."""
        self.process.kill()
        self.process.communicate()

    def living(self) -> list[str]:
        """Command lines of its living descendants: the mark is in the environment that they inherited."""
        wanted = f"{MARK}={self._mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0") and _runs(folder):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue  # it ended while we looked
        return found


def run(*arguments: object, environment: dict[str, str] | None = None, cwd: Path = ROOT) -> Ended:
    """A restaging from start to end."""
    return Command(*arguments, environment=environment, cwd=cwd).finish()


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The condition's first true value; fails the test when it does not come."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)  # looking takes a core: what is waited for needs it
    return value


def write_config(path: Path, **troupe: Any) -> Path:
    """A configuration file with the default pins and other settings under `troupe`, e.g. `batch={"lanes": 2}`."""
    shipped = yaml.safe_load((ROOT / "ray-config.yaml").read_text())
    shipped["troupe"] = {**troupe}
    path.write_text(yaml.safe_dump(shipped))
    return path


def _runs(folder: Path) -> bool:
    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
    return state not in "ZX"
