"""The bench of the bare networks counts the right work, runs with torch alone and reports what it cannot measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from actors.catalogue import CARDS
from bench.networks import OWN, Step, build, count_tflop, main, parse_size, prepare
from bench.subjects import SUBJECTS, UPSCALE, Inputs
from cluster.registry import official_registry

ROOT = Path(__file__).parents[2]


PUBLISHED = {
    "realesr-animevideov3": ("480p", 0.380),
    "realesr-general-x4v3": ("1080p", 5.014),
    "realesrgan-x4plus-anime-6b": ("720p", 10.518),
    "realesrgan-x2plus": ("576x1024", 5.288),
    "realesrgan-x4plus": ("720p", 33.043),
    "rvm-mobilenetv3": ("1080p", 0.0208),
    "rvm-resnet50": ("1080p", 0.1228),
}


@pytest.mark.parametrize("network", PUBLISHED)
def test_work_is_counted_as_published_and_plans_name_as_much(network: str) -> None:
    size, tflop = PUBLISHED[network]
    width, height = parse_size(size)
    counted = count_tflop(network, (width, height))
    assert counted == pytest.approx(tflop, rel=0.01)
    if network in UPSCALE:
        assert CARDS[network].work == pytest.approx(counted / (width * height / 1e6), rel=0.01)


def test_every_upscaler_s_work_is_published() -> None:
    assert UPSCALE.keys() <= PUBLISHED.keys()


def test_it_needs_torch_and_numpy_alone() -> None:
    media, files = ("cv2", "av", "decord", "torchvision"), ("onnxruntime", "onnx", "safetensors", "pyarrow", "yaml")
    others = ("ray", "pydantic", *media, *files)
    code = f"import sys; sys.modules.update(dict.fromkeys({others})); import bench.networks"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_network_is_measured_or_has_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    networks, modes = "realesr-animevideov3,realesrgan-x4plus-anime-6b,rvm-mobilenetv3", "channels_last,cuda_graph"
    arguments = ["--device", "cpu", "--networks", networks, "--modes", modes, "--sizes", "32x32"]
    main([*arguments, "--seconds", "0.02", "--json"])
    report = json.loads(capsys.readouterr().out)
    rows = {(row["network"], row["mode"]): row for row in report["rows"]}
    assert rows.keys() == {(n, m) for n in networks.split(",") for m in modes.split(",")}
    for (_, mode), row in rows.items():
        if mode == "cuda_graph":
            assert row["note"] == "needs a CUDA device"
        elif row["fps"] is None:
            assert row["note"].startswith("skipped: at least")
        else:
            assert row["fps"] * row["ms"] == pytest.approx(1000)
            assert row["share"] > 0
    assert rows["rvm-mobilenetv3", "channels_last"]["fps"] is not None
    assert report["machine"]["matmul_tflops"] > 0


@pytest.fixture
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine can do at most is not measured again."""
    monkeypatch.setattr("bench.networks.matmul_peak", lambda *_: 0.1)


@pytest.mark.usefixtures("known_peak")
def test_a_cell_that_fails_says_why_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(network: nn.Module, inputs: Inputs, mode: str) -> Step:
        if mode == "compiled":
            raise RuntimeError("no compiler\nat line 7 of something")
        return prepare(network, inputs, mode)

    monkeypatch.setattr("bench.networks.prepare", refusing)
    arguments = ["--device", "cpu", "--networks", "rvm-mobilenetv3", "--sizes", "32x32", "--seconds", "0.02"]
    main([*arguments, "--modes", "compiled,eager"])
    head, failed, measured = capsys.readouterr().out.splitlines()[1:]
    assert head.split()[:3] == ["network", "size", "mode"]
    assert failed.endswith("failed: RuntimeError: no compiler")
    assert measured.split()[:3] == ["rvm-mobilenetv3", "32x32", "eager"]
    assert "failed" not in measured


@pytest.mark.parametrize(
    "arguments",
    [["--networks", "nothing"], ["--sizes", "33x32"], ["--sizes", "big"], ["--modes", "fast"], ["--batch", "0"]],
    ids=" ".join,
)
def test_nonsense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cpu", *arguments])
    assert arguments[0] in capsys.readouterr().err


#: Small inputs that each architecture still takes, width and height; one size of each stands for the others.
TINY = {
    "realesr-animevideov3": (32, 32),
    "rvm-mobilenetv3": (64, 64),
    "u2netp": (64, 64),
    "u2net-anime": (64, 64),
    "isnet-anime": (64, 64),
    "modnet-photographic": (64, 64),
    "birefnet-lite": (64, 64),
    "bisenet-faces": (64, 64),
    "ferplus": (64, 64),
    "raft-small": (128, 128),
    "gma-things": (128, 128),
    "lama-anime": (32, 32),
    "e2fgvi-hq": (108, 60),
    "propainter": (64, 64),
    "propainter-flow": (64, 64),
    "xmem": (32, 32),
    "cutie-small": (32, 32),
    "deaot-t": (33, 33),
    "transnetv2": (48, 27),
    "x3d-xs": (32, 32),
}


@pytest.mark.parametrize("name", TINY)
@torch.inference_mode()
def test_every_kind_of_network_takes_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.subjects.LOCAL", 3)
    monkeypatch.setattr("bench.subjects.REFERENCES", 1)
    network, inputs = build(name, TINY[name], 1, "cpu", torch.float32)
    network(*inputs)


def test_names_are_those_of_the_weights() -> None:
    published = {entry.name for entry in official_registry()}
    assert set(SUBJECTS) - published == {"u2net-anime"}  # of which no weights are published


@pytest.mark.usefixtures("known_peak")
def test_a_network_is_measured_at_its_own_size(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--networks", "ferplus", "--sizes", OWN, "--modes", "eager", "--half"]
    main([*arguments, "--seconds", "0.02", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["size"] == "64x64"
    assert row["parameters"] == pytest.approx(8.76, abs=0.01)
    assert row["fps"] > 0
    assert row["peak_mib"] is None or row["peak_mib"] >= 0
    assert 0 < row["half_error"] < 0.1 or row["note"].startswith("fp16 failed")


@pytest.mark.usefixtures("known_peak")
def test_an_overflow_in_halves_is_said_not_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(network: nn.Module) -> None:
        for parameter in network.parameters():
            nn.init.constant_(parameter, 10)

    monkeypatch.setattr("bench.networks.fill", too_large)
    arguments = ["--device", "cpu", "--networks", "ferplus", "--sizes", OWN, "--modes", "eager", "--half"]
    main([*arguments, "--seconds", "0.02"])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.endswith("fp16 failed: ArithmeticError: values that are not finite")
