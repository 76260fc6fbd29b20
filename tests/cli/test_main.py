"""What the command line does as a whole: help, version, exit codes, and how little it imports for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app

ROOT = Path(__file__).resolve().parents[2]
BAD = (["nope"], ["restage"], ["restage", "a.mp4", "--nope"], ["restage", "a.mp4", "--crf", "99"])

_IMPORTS = """
import sys
from cli.main import app
try:
    app()
finally:
    slow = {"torch", "ray", "decord", "pandas", "aiohttp", "fastapi", "sqlalchemy"}
    print("imported", sorted(slow & set(sys.modules)))
"""


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_usage_exits_with_2_and_says_what_is_wrong(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "Error" in done.stderr


def test_help_does_not_wait_for_torch_ray_or_a_server_s_libraries() -> None:
    command = [sys.executable, "-c", _IMPORTS, "restage", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--background" in done.stdout
    assert done.stdout.rstrip().endswith("imported []")


def test_version_is_the_installed_one() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.stdout.startswith("troupe 0.")


def test_models_are_listed_with_the_state_of_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_WEIGHTS", str(tmp_path))
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)}
    assert rows["rvm-resnet50"]["missing"] == ["rvm-resnet50"]
    assert "unsettled" in rows["rvm-resnet50"]["licence"]
    assert rows["chroma"]["runs_in"] == "lane"
    assert rows["chroma"]["state"] == "none needed"
    plain = CliRunner().invoke(app, ["models"]).stdout
    assert all(name in plain for name in rows)
    assert "troupe weights fetch" in plain
