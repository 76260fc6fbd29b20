"""The RVM network agrees with the official one and walks through time exactly."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from actors.networks.rvm import MattingNetwork, build_rvm
from actors.networks.rvm.matting import Refiner, Variant
from tests.actors.networks import goldens

GOLDENS: list[tuple[str, Variant, Refiner, float]] = [
    ("rvm_mnv3", "mobilenetv3", "deep_guided_filter", 1.8),
    ("rvm_mnv3_full", "mobilenetv3", "deep_guided_filter", 1.8),
    ("rvm_mnv3_fgf", "mobilenetv3", "fast_guided_filter", 1.8),
    ("rvm_rn50", "resnet50", "deep_guided_filter", 1.4),
]


@pytest.fixture(scope="module")
def fill(shared: Path) -> Callable[..., nn.Module]:
    spec = importlib.util.spec_from_file_location("fill", shared / "goldens" / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., nn.Module] = module.fill_
    return function


@pytest.mark.parametrize(("entry", "variant", "refiner", "gain"), GOLDENS, ids=[g[0] for g in GOLDENS])
@torch.no_grad()
def test_outputs_and_states_equal_the_official_network(
    shared: Path, fill: Callable[..., nn.Module], entry: str, variant: Variant, refiner: Refiner, gain: float
) -> None:
    gold = np.load(shared / "goldens" / "networks.npz")
    network = fill(MattingNetwork(variant, refiner), gain=gain)
    fgr, pha, states = network(torch.from_numpy(gold[f"{entry}/x"]), downsample_ratio=float(gold[f"{entry}/ratio"]))
    for name, ours in zip(("fgr", "pha", "r1", "r2", "r3", "r4"), (fgr, pha, *states), strict=True):
        np.testing.assert_allclose(ours.numpy(), gold[f"{entry}/{name}"], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("variant", ["mobilenetv3", "resnet50"])
@pytest.mark.parametrize("refiner", ["deep_guided_filter", "fast_guided_filter"])
@pytest.mark.usefixtures("meta")
def test_state_dict_has_the_official_names_shapes_and_order(shared: Path, variant: Variant, refiner: Refiner) -> None:
    suffix = "" if refiner == "deep_guided_filter" else "_fast_guided_filter"
    official = goldens.keys(shared)[f"rvm_{variant}{suffix}"]
    ours = [[name, list(tensor.shape)] for name, tensor in MattingNetwork(variant, refiner).state_dict().items()]
    assert ours == official


@pytest.mark.parametrize("variant", ["mobilenetv3", "resnet50"])
@pytest.mark.parametrize("refiner", ["deep_guided_filter", "fast_guided_filter"])
@pytest.mark.usefixtures("meta")
def test_a_state_dict_alone_tells_its_network(variant: Variant, refiner: Refiner) -> None:
    state = MattingNetwork(variant, refiner).state_dict()
    built = build_rvm(state)
    assert built is not None
    built.load_state_dict(state, strict=True)


def test_foreign_state_dicts_are_not_taken_for_rvm() -> None:
    assert build_rvm({}) is None
    assert build_rvm({"conv_first.weight": torch.zeros(1)}) is None
    assert build_rvm({"backbone.conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}) is None
    headless = {k: v for k, v in MattingNetwork().state_dict().items() if not k.startswith("backbone.")}
    assert build_rvm(headless) is None


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@torch.no_grad()
def test_a_clip_equals_its_frames_one_by_one_and_its_pieces(ratio: float) -> None:
    torch.manual_seed(0)
    network = MattingNetwork().eval()
    clip = torch.rand(2, 4, 3, 50, 70)  # odd sizes at 1/4 and below
    fgr, pha, states = network(clip, downsample_ratio=ratio)
    assert fgr.shape == (2, 4, 3, 50, 70) and pha.shape == (2, 4, 1, 50, 70)

    frames, carried = [], None
    for t in range(4):
        frame_fgr, frame_pha, carried = network(clip[:, t], carried, ratio)
        frames.append(torch.cat([frame_fgr, frame_pha], 1))
    torch.testing.assert_close(torch.stack(frames, 1), torch.cat([fgr, pha], 2), rtol=0, atol=1e-5)
    assert carried is not None
    for ours, whole in zip(carried, states, strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)

    _, _, halfway = network(clip[:, :3], None, ratio)
    _, last, _ = network(clip[:, 3:], halfway, ratio)
    torch.testing.assert_close(last[:, 0], pha[:, 3], rtol=0, atol=1e-5)


@torch.no_grad()
def test_states_matter() -> None:
    torch.manual_seed(0)
    network = MattingNetwork().eval()
    frame = torch.rand(1, 3, 48, 64)
    _, _, states = network(frame)
    _, _, fresh = network(frame)
    _, _, carried = network(frame, states)
    assert not torch.equal(carried[0], fresh[0])
