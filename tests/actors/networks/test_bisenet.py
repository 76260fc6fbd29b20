"""BiSeNet is the official network, at any size, and its file loads by the one door."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.networks import bisenet
from actors.networks.bisenet import CLASSES, BiSeNet
from actors.networks.load import load_network
from tests.actors.networks import goldens


@lru_cache
def build(shared: Path, _entry: str = "bisenet") -> BiSeNet:
    return goldens.fill(shared, BiSeNet, 1.6)


def call(network: BiSeNet, x: Tensor) -> dict[str, Tensor]:
    out, out16, out32 = network.all_maps(x)
    return {"out": out, "out16": out16[:, :4], "out32": out32[:, :4], "cp8": network.cp(x)[0][:, :16]}


@torch.no_grad()
def test_outputs_equal_the_official_implementation(shared: Path) -> None:
    network, x = build(shared), goldens.arrays(shared, "bisenet")["x"]
    outputs = call(network, x)
    goldens.check(shared, "bisenet", outputs)
    assert torch.equal(network(x), outputs["out"])


@pytest.mark.usefixtures("meta")
def test_sizes_and_keys_are_the_official_ones(shared: Path) -> None:
    network = BiSeNet()
    goldens.check_keys(shared, "bisenet", network)
    assert goldens.millions(network) == 13.30
    assert len(CLASSES) == 19
    found = bisenet.detect(network.state_dict())
    assert found is not None
    goldens.check_keys(shared, "bisenet", found)
    assert bisenet.detect(network.cp.state_dict()) is None


def test_the_number_of_classes_is_read_from_the_state_dict() -> None:
    found = bisenet.detect(BiSeNet(7).state_dict())
    assert found is not None
    assert found(torch.rand(2, 3, 32, 32)).shape == (2, 7, 32, 32)


def test_every_tensor_of_the_state_dict_matters(shared: Path) -> None:
    network, x = build(shared), goldens.arrays(shared, "bisenet")["x"]
    assert goldens.dead(network, lambda: network.all_maps(x)) == set()


@pytest.mark.parametrize(("height", "width"), [(67, 45), (1, 1), (33, 130)])
@torch.no_grad()
def test_a_batch_equals_its_frames_at_any_size(shared: Path, height: int, width: int) -> None:
    network = build(shared)
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    both = network(x.contiguous(memory_format=torch.channels_last))
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], network(x[i : i + 1]), rtol=1e-4, atol=1e-4)


def test_the_official_file_loads(tmp_path: Path) -> None:
    torch.save(BiSeNet().state_dict(), tmp_path / "79999_iter.pth")
    assert load_network(tmp_path / "79999_iter.pth").kind == "bisenet"
