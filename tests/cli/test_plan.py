"""`troupe plan` and `troupe profile`: what fits is said without starting anything; what is measured is found again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from actors.profiling import Order, measure
from cli.main import app
from cluster.config import PINS
from cluster.errors import ClusterError
from cluster.profiles import Profile, shipped_profile, write_profile
from tests.cluster.test_budget import figure

ROOT = Path(__file__).resolve().parents[2]
MODEL = "realesr-animevideov3"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cards, no caches but those of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)


def config(folder: Path, **pins: dict[str, object]) -> str:
    applications = [
        {"name": name, "import_path": "actors.pin:build", "args": {"name": name, "models": [MODEL], **settings}}
        for name, settings in pins.items()
    ]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": applications}))
    return str(path)


def test_plan_of_the_shipped_pins_for_the_reference_card() -> None:
    done = CliRunner().invoke(app, ["plan", "--gpus", "1"])
    assert done.exit_code == 0, done.output
    assert "NVIDIA GeForce RTX 3060, 12036 MiB (assumed" in done.stdout
    for pin in PINS:
        assert pin.name in done.stdout
    assert "estimated" in done.stdout
    assert "█ restage" in done.stdout


def test_plan_of_what_does_not_fit_exits_1_with_remedies(tmp_path: Path) -> None:
    path = config(tmp_path, a={"num_gpus": 0.7}, b={"num_gpus": 0.7, "models": ["rvm-resnet50"]})
    done = CliRunner().invoke(app, ["plan", "--config", path, "--gpus", "1", "--json"])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["fits"] is False
    assert found["gpu"]["problems"] == ["the pins take 1.4 of 1 GPU"]
    assert any(remedy["fits"] for remedy in found["gpu"]["remedies"])


def test_plan_without_a_gpu_says_that_pins_run_on_the_cpu() -> None:
    done = CliRunner().invoke(app, ["plan"])
    assert done.exit_code == 0
    assert "no NVIDIA GPU here: pins run on the CPU" in done.stdout


def test_plan_uses_what_was_measured_on_the_card(tmp_path: Path) -> None:
    path = config(tmp_path, a={"micro_batch": 1})
    measured = Profile(device="My Card", total_mib=8000, context_mib=300, estimated=False)
    write_profile({"XDG_CACHE_HOME": str(tmp_path / "cache")}, measured.with_figures([figure(MODEL, 10, 2010)]))
    done = CliRunner().invoke(app, ["plan", "--config", path, "--card", "My Card", "--json"])
    (pin,) = json.loads(done.stdout)["gpu"]["pins"]
    assert (pin["estimated"], pin["need_mib"], pin["num_gpus"]) == (False, 2511, 0.32)
    small = CliRunner().invoke(app, ["plan", "--config", path, "--card", "My Card", "--memory", "2000"])
    assert small.exit_code == 1
    assert "pin a needs 2511 MiB, and the card has 2000" in small.stdout


def test_plan_too_many_cpus_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plan", "--config", config(tmp_path, a={"num_cpus": 4000})])
    assert done.exit_code == 1
    assert "CPUs: 4000" in done.stdout


def test_plan_starts_nothing_and_is_quick() -> None:
    script = (
        "import sys; from cli.main import app\n"
        "try: app()\n"
        "finally: print('imported', sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, "plan", "--gpus", "2"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip().endswith("imported []")
    assert time.monotonic() - begun < 10  # a second on a quiet machine


def test_measurement_is_made_in_a_process_of_its_own_and_kept(tmp_path: Path, tiny_weights: Path) -> None:
    runner = CliRunner(env={"TROUPE_WEIGHTS": str(tiny_weights)})
    arguments = ["profile", MODEL, "--frame", "64x48", "--seconds", "0.1", "--json"]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (row,) = found["measured"]
    assert (row["model"], row["width"], row["height"], row["dtype"]) == (MODEL, 64, 48, "fp32")
    assert row["ms"] > 0
    assert row["load_s"] >= 0
    assert row["peak_mib"] >= row["resident_mib"] >= 0
    kept = Profile.model_validate_json(Path(found["path"]).read_text())
    assert not kept.estimated
    assert [each.model for each in kept.figures] == [MODEL]
    assert Path(found["path"]).is_relative_to(tmp_path / "cache" / "troupe" / "profiles")


def test_profile_of_missing_weights_says_the_command(tmp_path: Path) -> None:
    runner = CliRunner(env={"TROUPE_WEIGHTS": str(tmp_path / "none")})
    done = runner.invoke(app, ["profile", "rvm-resnet50"])
    assert done.exit_code == 2
    assert "run `troupe weights fetch rvm-resnet50`" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nobody"], "is not a model"),
        (["chroma"], "runs in the lane"),
        ([MODEL, "--frame", "huge"], "none of 480p"),
        ([MODEL, "--dtype", "int4"], "int4 is none"),
        ([MODEL, "--device", "cuda"], "there is no NVIDIA GPU here"),
        ([MODEL, "--device", "tpu"], "tpu is none"),
    ],
)
def test_wrong_measurement_is_refused(words: list[str], said: str, tiny_weights: Path) -> None:
    done = CliRunner(env={"TROUPE_WEIGHTS": str(tiny_weights)}).invoke(app, ["profile", *words])
    assert done.exit_code == 2
    assert said in done.stderr


def test_measurement_that_fails_is_told_with_what_was_measured(tmp_path: Path) -> None:
    order = Order(MODEL, (str(tmp_path / "none.pth"),), "cpu", "fp32", 1, 0, 64, 48)
    with pytest.raises(ClusterError, match=f"{MODEL} at 64x48, micro-batch 1, tile 0: failed: .*no such file"):
        measure(order, 60)


def test_shipped_card_is_the_reference_machine_s() -> None:
    assert shipped_profile().device == "NVIDIA GeForce RTX 3060"
