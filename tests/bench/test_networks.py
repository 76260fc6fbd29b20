"""The bench of the bare networks counts the right work, runs with torch alone and reports what it cannot measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from actors.catalogue import CARDS
from bench.networks import UPSCALE, Inputs, Step, count_tflop, main, parse_size, prepare

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("network", "size", "tflop"),
    [
        ("realesr-animevideov3", "480p", 0.380),
        ("realesr-general-x4v3", "1080p", 5.014),
        ("realesrgan-x4plus-anime-6b", "720p", 10.518),
        ("realesrgan-x2plus", "576x1024", 5.288),
        ("realesrgan-x4plus", "720p", 33.043),
        ("rvm-mobilenetv3", "1080p", 0.0208),
        ("rvm-resnet50", "1080p", 0.1228),
    ],
)
def test_work_is_counted_as_published(network: str, size: str, tflop: float) -> None:
    assert count_tflop(network, parse_size(size)) == pytest.approx(tflop, rel=0.01)


@pytest.mark.parametrize("network", UPSCALE)
def test_work_that_plans_name_is_what_the_network_does(network: str) -> None:
    assert CARDS[network].work == pytest.approx(count_tflop(network, (1024, 1024)) / 1.048576, rel=0.01)


def test_it_needs_torch_and_numpy_alone() -> None:
    others = ("ray", "cv2", "av", "pydantic", "decord", "onnxruntime", "pyarrow", "yaml", "torchvision")
    code = f"import sys; sys.modules.update(dict.fromkeys({others})); import bench.networks"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_network_is_measured_or_has_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    networks, modes = "realesr-animevideov3,realesrgan-x4plus,rvm-mobilenetv3", "channels_last,cuda_graph"
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
