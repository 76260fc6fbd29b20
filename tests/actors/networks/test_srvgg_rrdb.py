"""The upscaling networks are the official ones, and the sizes that tiling relies on are true."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from actors.networks import rrdb, srvgg
from actors.networks.rrdb import RRDBNet
from actors.networks.srvgg import SRVGGNetCompact

GOLDENS: dict[str, Callable[[], nn.Module]] = {
    "srvgg16": lambda: SRVGGNetCompact(convs=16),
    "srvgg32": lambda: SRVGGNetCompact(convs=32),
    "rrdb_x4_23": lambda: RRDBNet(blocks=23, scale=4),
    "rrdb_x4_6": lambda: RRDBNet(blocks=6, scale=4),
    "rrdb_x2_23": lambda: RRDBNet(blocks=23, scale=2),
}


@pytest.mark.parametrize("entry", GOLDENS)
def test_outputs_equal_the_official_implementation(shared: Path, entry: str) -> None:
    fill = runpy.run_path(str(shared / "goldens" / "fill.py"))["fill_"]
    arrays = np.load(shared / "goldens" / "networks.npz")
    x, expected = torch.from_numpy(arrays[f"{entry}/x"]), arrays[f"{entry}/y"]
    network = fill(GOLDENS[entry]()).to(memory_format=torch.channels_last)

    with torch.inference_mode():
        y = network(x.contiguous(memory_format=torch.channels_last)).numpy()

    tolerance = 1e-4 * (expected.std() if entry.endswith("_23") else 1.0)
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() <= tolerance


@pytest.mark.parametrize(
    ("network", "parameters", "tensors"),
    [
        (SRVGGNetCompact(convs=16), 621_424, 53),
        (SRVGGNetCompact(convs=32), 1_213_296, 101),
        (RRDBNet(blocks=6), 4_467_779, 192),
        (RRDBNet(blocks=23, scale=2), 16_703_171, 702),
        (RRDBNet(blocks=23, scale=4), 16_697_987, 702),
    ],
    ids=["animevideov3", "general-x4v3", "x4plus-anime-6b", "x2plus", "x4plus"],
)
def test_networks_have_the_official_number_of_parameters(network: nn.Module, parameters: int, tensors: int) -> None:
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors


@pytest.mark.parametrize("convs", [1, 3])
def test_a_pixel_depends_on_its_receptive_field_and_on_nothing_beyond(convs: int) -> None:
    network = SRVGGNetCompact(features=4, convs=convs, scale=2).eval()
    reach = network.receptive_field
    for parameter in network.parameters():  # all positive, so that no dependence cancels out or is cut off
        nn.init.uniform_(parameter, 0.1, 0.2)
    x = torch.rand(1, 3, 2 * reach + 5, 2 * reach + 5, requires_grad=True)

    middle = reach + 2
    network(x)[0, :, 2 * middle, 2 * middle].sum().backward()

    assert x.grad is not None
    touched = x.grad[0].abs().sum(0).nonzero()
    assert touched.min() == middle - reach
    assert touched.max() == middle + reach


@pytest.mark.parametrize(
    ("features", "convs", "scale"), [(64, 16, 4), (64, 32, 4), (24, 8, 2), (16, 0, 1)], ids=lambda v: str(v)
)
def test_compact_sizes_are_read_from_the_state_dict(features: int, convs: int, scale: int) -> None:
    network = srvgg.detect(SRVGGNetCompact(features, convs, scale).state_dict())
    assert network is not None
    assert network.scale == scale
    assert network.receptive_field == convs + 2
    assert network.body[0].out_channels == features


@pytest.mark.parametrize(("features", "growth", "blocks", "scale"), [(64, 32, 2, 4), (32, 8, 3, 2), (16, 8, 1, 1)])
def test_rrdb_sizes_are_read_from_the_state_dict(features: int, growth: int, blocks: int, scale: int) -> None:
    original = RRDBNet(features, growth, blocks, scale)
    network = rrdb.detect(original.state_dict())
    assert network is not None
    assert network.scale == scale
    network.load_state_dict(original.state_dict(), strict=True)


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_rrdb_enlarges_by_its_scale(scale: int) -> None:
    network = RRDBNet(features=8, growth=4, blocks=1, scale=scale).eval()
    side = 2 * network.multiple_of
    with torch.inference_mode():
        assert network(torch.rand(2, 3, side, 3 * side)).shape == (2, 3, side * scale, 3 * side * scale)


def test_networks_do_not_take_each_other_for_their_own() -> None:
    assert srvgg.detect(RRDBNet(blocks=1).state_dict()) is None
    assert rrdb.detect(SRVGGNetCompact(convs=1).state_dict()) is None


def test_an_absurd_layer_index_does_not_build_an_absurd_network() -> None:
    compact = SRVGGNetCompact(features=4, convs=1).state_dict()
    compact["body.400000000.weight"] = compact["body.4.weight"]
    dense = RRDBNet(features=4, growth=2, blocks=1).state_dict()
    dense["body.400000000.rdb1.conv1.weight"] = dense["body.0.rdb1.conv1.weight"]
    assert srvgg.detect(compact) is None
    assert rrdb.detect(dense) is None
