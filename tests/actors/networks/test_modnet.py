"""MODNet is the official network, and its file loads by the one door."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.networks import modnet
from actors.networks.load import load_network
from actors.networks.modnet import MODNet
from cluster.errors import WeightsError
from tests.actors.networks import goldens


@lru_cache
def build(shared: Path, _entry: str = "modnet") -> MODNet:
    return goldens.fill(shared, MODNet, 1.6, ties="modnet")


def call(network: MODNet, x: Tensor) -> dict[str, Tensor]:
    return dict(zip(("semantic", "detail", "matte"), network.all_maps(x), strict=True))


@torch.no_grad()
def test_outputs_equal_the_official_implementation(shared: Path) -> None:
    network, x = build(shared), goldens.arrays(shared, "modnet")["x"]
    outputs = call(network, x)
    goldens.check(shared, "modnet", outputs)
    assert torch.equal(network(x), outputs["matte"])


@pytest.mark.usefixtures("meta")
def test_sizes_and_keys_are_the_official_ones(shared: Path) -> None:
    network = MODNet()
    goldens.check_keys(shared, "modnet", network)
    assert goldens.millions(network) == 6.49
    assert modnet.detect(network.state_dict()) is not None
    assert modnet.detect(network.lr_branch.state_dict()) is None


def test_every_tensor_of_the_state_dict_matters(shared: Path) -> None:
    network, x = build(shared), goldens.arrays(shared, "modnet")["x"]
    assert goldens.dead(network, lambda: network.all_maps(x)) == set()


@torch.no_grad()
def test_a_batch_equals_its_frames_at_any_size(shared: Path) -> None:
    network = build(shared)
    x = torch.rand(2, 3, 64, 160, generator=torch.Generator().manual_seed(1)) * 2 - 1
    both = network(x.contiguous(memory_format=torch.channels_last))
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], network(x[i : i + 1]), rtol=1e-4, atol=2e-5)


def test_the_smallest_frame_has_a_matte(shared: Path) -> None:
    assert build(shared)(torch.rand(1, 3, 32, 32)).shape == (1, 1, 32, 32)


@pytest.mark.parametrize(("height", "width"), [(100, 64), (64, 72), (0, 32)])
def test_other_sizes_are_refused_with_the_rule(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=rf"sides must be multiples of 32, got {width}x{height}"):
        MODNet()(torch.zeros(1, 3, height, width))


def test_the_official_file_loads_and_its_backbone_is_one(tmp_path: Path) -> None:
    state = MODNet().state_dict()
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "modnet.ckpt")
    loaded = load_network(tmp_path / "modnet.ckpt")
    assert loaded.kind == "modnet"
    assert isinstance(loaded.network, MODNet)
    assert loaded.network.lr_branch.backbone is loaded.network.backbone

    state["backbone.model.features.0.0.weight"] = torch.zeros(32, 3, 3, 3)
    torch.save(state, tmp_path / "modnet.ckpt")
    with pytest.raises(
        WeightsError, match=r"two values for one tensor in backbone\.model\.features\.0\.0\.weight = lr_"
    ):
        load_network(tmp_path / "modnet.ckpt")
