"""The service does what its OpenAPI document says, for whatever schemathesis makes of that document."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.edge import auth
from tests.serve.socketed import Live, live, tokens

SoakCount = Callable[[int, int], int]
TOKEN = "token-of-a-0123456789"
#: That what fits the schema is always taken is not promised: fields exclude each other, presets and tasks may not be.
_NOT_PROMISED = "positive_data_acceptance"


def check(
    here: Live, folder: Path, phases: str, examples: int, *options: str, but: str = "", seconds: float = 250
) -> None:
    """Runs schemathesis against a service; fails with what it says."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{here.url}/openapi.json"]
    command += ["--phases", phases, "--max-examples", str(examples), "--exclude-checks", f"{_NOT_PROMISED}{but}"]
    command += ["--request-timeout", "20", "--no-color", "--continue-on-failure", *options]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_examples_and_boundary_values_are_answered_as_documented_where_tokens_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_STRANGERS_PER_MINUTE", 1e9)  # 401 is what is looked at here
    known = tokens(a=TOKEN)
    with live(tmp_path, known=known, on_demand_wait_s=0.1, on_demand_megapixels=1, max_active=1_000_000) as here:
        check(here, tmp_path, "examples,coverage", 1, "--header", f"Authorization: Bearer {TOKEN}")


@pytest.mark.soak
def test_fuzzed_requests_are_answered_as_documented(tmp_path: Path, soak_count: SoakCount) -> None:
    count = soak_count(1, 150)
    with live(tmp_path, on_demand_wait_s=0.1, on_demand_megapixels=1, max_active=1_000_000) as here:
        # The events of a task that waits have no end.
        no_events = ("--exclude-path-regex", "/events$")
        seconds = 250 if count == 1 else 6000
        phases = "examples,coverage,fuzzing,stateful"
        check(here, tmp_path, phases, count, *no_events, but=",ignored_auth", seconds=seconds)
