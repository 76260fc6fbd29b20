"""`troupe doctor` from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.doctor import check_codecs, check_config, check_weights
from cluster.weights import WeightsStore

COMMAND = "import typer; from cli.doctor import doctor; typer.run(doctor)"
ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which may start a Ray; nothing of the user's folders is looked at."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TROUPE_"))}
    environ |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_doctor_starts_a_ray_that_frees_objects_at_once(tmp_path: Path) -> None:
    done = run(tmp_path, "--json")
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["Ray"]["status"] == "ok", done.stderr
    assert checks["object freeing"]["status"] == "ok"
    assert {"packages", "configuration", "codecs", "NVENC", "weights", "output disk", "shared memory", "GPU"} <= set(
        checks
    )
    assert (done.returncode == 0) == report["ok"]


def test_failed_check_exits_1_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path, "--no-ray", "--output", "file")
    assert done.returncode == 1
    assert "fail output disk" in done.stdout
    assert "→" in done.stdout


def test_installed_ffmpeg_has_every_codec_and_filter() -> None:
    assert check_codecs().status == "ok"


def test_broken_configuration_fails_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "ray-config.yaml").write_text("troupe: {batch: {window: 0}}")
    check = check_config(tmp_path / "ray-config.yaml")
    assert check.status == "fail"
    assert "window" in check.detail


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ({}, "warn"),
        ({"rvm_resnet50.pth": b"own"}, "ok"),
        ({"rvm_resnet50.pth": b"own", "rvm_resnet50.pth.json": b"?"}, "fail"),
    ],
)
def test_weights_are_missing_present_or_damaged(tmp_path: Path, files: dict[str, bytes], status: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert check_weights(WeightsStore(tmp_path)).status == status
