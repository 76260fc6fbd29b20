"""BiRefNet is the official network in every Swin size, and its files load by the one door."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.networks import birefnet
from actors.networks.birefnet import BiRefNet
from actors.networks.birefnet.network import SIZES, Backbone
from actors.networks.birefnet.swin import shift_masks
from actors.networks.load import load_network
from tests.actors.networks import goldens

BACKBONES: dict[str, Backbone] = {"birefnet_t": "swin_t", "birefnet_l": "swin_l"}
#: What only training uses.
TRAINING = ("decoder.conv_ms_spvn_", "decoder.gdt_convs_pred_")


@pytest.fixture(scope="module", autouse=True)
def _large_one_is_freed() -> Iterator[None]:
    """Other tests need the gigabyte of Swin-L's weights."""
    yield
    build.cache_clear()


@lru_cache
def build(shared: Path, entry: str) -> BiRefNet:
    return goldens.fill(shared, lambda: BiRefNet(BACKBONES[entry]), 1.2)


def tiny(shared: Path) -> BiRefNet:
    return build(shared, "birefnet_t")


def call(network: BiRefNet, x: Tensor) -> dict[str, Tensor]:
    first, _, third, fourth = network.bb(x)
    context = network.encode(x)[3]
    return {
        "logit": network(x),
        "bb1": first[:, :8],
        "bb3": third[:, :32],
        "bb4": fourth[:, :64],
        "x4": context[:, ::8],
        "squeeze": network.squeeze_module(context)[:, :32],
    }


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("entry", BACKBONES)
@torch.no_grad()
def test_outputs_equal_the_official_implementation(shared: Path, entry: str) -> None:
    goldens.check(shared, entry, call(build(shared, entry), goldens.arrays(shared, entry)["x"]))


@pytest.mark.parametrize(("entry", "millions"), [("birefnet_t", 44.31), ("birefnet_l", 220.18)])
@pytest.mark.usefixtures("meta")
def test_sizes_and_keys_are_the_official_ones(shared: Path, entry: str, millions: float) -> None:
    network = BiRefNet(BACKBONES[entry])
    goldens.check_keys(shared, entry, network)
    assert goldens.millions(network) == millions


@pytest.mark.parametrize("backbone", SIZES)
@pytest.mark.usefixtures("meta")
def test_the_backbone_is_read_from_the_state_dict(backbone: Backbone) -> None:
    state = BiRefNet(backbone).state_dict()
    found = birefnet.detect(state)
    assert found is not None
    assert {name: value.shape for name, value in found.state_dict().items()} == {n: v.shape for n, v in state.items()}


@pytest.mark.usefixtures("meta")
def test_other_backbones_are_another_family() -> None:
    state = BiRefNet("swin_t").state_dict()
    assert birefnet.detect(state | {"bb.patch_embed.proj.weight": torch.zeros(64, 3, 4, 4)}) is None
    assert birefnet.detect({"bb.patch_embed.proj.weight": torch.zeros(96, 3, 4, 4)}) is None


def test_every_tensor_of_the_state_dict_but_those_of_training_matters(shared: Path) -> None:
    network, x = build(shared, "birefnet_t"), noise(1, 3, 64, 64)
    training = {name for name, _ in network.named_parameters() if name.startswith(TRAINING)}
    assert len(training) == 12
    assert goldens.dead(network, lambda: [network(x)]) == training


@torch.no_grad()
def test_a_batch_equals_its_frames_at_any_size(shared: Path) -> None:
    network, x = tiny(shared), noise(2, 3, 96, 288)
    both = network(x.contiguous(memory_format=torch.channels_last))
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], network(x[i : i + 1]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_smallest_frame_has_a_mask(shared: Path) -> None:
    assert tiny(shared)(noise(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(100, 64), (64, 72)])
def test_other_sizes_are_refused_with_the_rule(shared: Path, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=rf"sides must be multiples of 32, got {width}x{height}"):
        tiny(shared)(torch.zeros(1, 3, height, width))


def test_kept_masks_serve_copies_and_gradients(shared: Path) -> None:
    network = tiny(shared)
    shift_masks.cache_clear()
    with torch.inference_mode():
        expected = network(noise(1, 3, 64, 32))
    made = shift_masks.cache_info().misses
    network = copy.deepcopy(network).requires_grad_(True)
    y = network(noise(1, 3, 64, 32))
    y.sum().backward()
    torch.testing.assert_close(y.detach(), expected, rtol=1e-4, atol=1e-5)
    assert shift_masks.cache_info().misses == made > 0


def test_the_official_file_loads(tmp_path: Path, shared: Path) -> None:
    state = {f"module._orig_mod.{name}": value for name, value in tiny(shared).state_dict().items()}
    torch.save(state, tmp_path / "birefnet.pth")
    loaded = load_network(tmp_path / "birefnet.pth")
    assert loaded.kind == "birefnet"
    assert all(torch.equal(v, state[f"module._orig_mod.{n}"]) for n, v in loaded.network.state_dict().items())
