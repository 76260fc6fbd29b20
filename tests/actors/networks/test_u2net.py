"""U-2-Net and IS-Net are the official ones, in every size, and their files load by the one door."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from actors.networks import isnet, u2net
from actors.networks.isnet import ISNet
from actors.networks.load import load_network
from actors.networks.u2net import U2Net, Width
from cluster.errors import WeightsError
from tests.actors.networks import goldens

GAIN = 1.6
#: Entry of the recorded outputs, name in the list of keys, width, deeper, millions of parameters.
VARIANTS: list[tuple[str | None, str, Width, bool, float]] = [
    ("u2net", "u2net", "full", False, 44.01),
    ("u2netp", "u2netp", "lite", False, 1.13),
    ("u2net_sky", "u2net_sky_full2", "full", True, 50.52),
    (None, "u2net_sky_lite2", "lite", True, 1.21),
]
ENTRIES = [entry for entry, *_ in VARIANTS if entry]
EVERY = [*ENTRIES, "isnet"]


@lru_cache
def build(shared: Path, entry: str) -> nn.Module:
    known = {e: partial(U2Net, width, deeper) for e, _, width, deeper, _ in VARIANTS if e}
    return goldens.fill(shared, known.get(entry, ISNet), GAIN)


def call(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    if isinstance(network, ISNet):
        maps, features = network(x)
        named = {f"d{i}": m for i, m in enumerate(maps, 1)}
        return named | {"hx6": features[5], "hx1d_mean": features[0].mean(1, keepdim=True)}
    return {f"d{i}": m for i, m in enumerate(network(x))}


@pytest.mark.parametrize("entry", EVERY)
@torch.no_grad()
def test_outputs_equal_the_official_implementation(shared: Path, entry: str) -> None:
    goldens.check(shared, entry, call(build(shared, entry), goldens.arrays(shared, entry)["x"]))


@pytest.mark.parametrize(("keys", "width", "deeper", "millions"), [v[1:] for v in VARIANTS])
@pytest.mark.usefixtures("meta")
def test_sizes_and_keys_are_the_official_ones(
    shared: Path, keys: str, width: Width, deeper: bool, millions: float
) -> None:
    network = U2Net(width, deeper)
    goldens.check_keys(shared, keys, network)
    assert goldens.millions(network) == millions
    found = u2net.detect(network.state_dict())
    assert found is not None
    goldens.check_keys(shared, keys, found)
    assert found.probabilities == (not deeper)
    assert isnet.detect(network.state_dict()) is None


@pytest.mark.usefixtures("meta")
def test_isnet_has_the_official_size_and_keys(shared: Path) -> None:
    network = ISNet()
    goldens.check_keys(shared, "isnet", network)
    assert goldens.millions(network) == 44.05
    assert isnet.detect(network.state_dict()) is not None
    assert u2net.detect(network.state_dict()) is None


@pytest.mark.parametrize("entry", EVERY)
def test_every_tensor_of_the_state_dict_matters(shared: Path, entry: str) -> None:
    network, x = build(shared, entry), goldens.arrays(shared, entry)["x"]
    assert goldens.dead(network, lambda: list(call(network, x).values())) == set()


@pytest.mark.parametrize("entry", ["u2netp", "isnet"])
@torch.no_grad()
def test_a_batch_equals_its_frames_at_any_size(shared: Path, entry: str) -> None:
    network = build(shared, entry)
    x = torch.rand(2, 3, 67, 45, generator=torch.Generator().manual_seed(1))
    both = call(network, x.contiguous(memory_format=torch.channels_last))
    for i in range(2):
        for name, single in call(network, x[i : i + 1]).items():
            torch.testing.assert_close(both[name][i : i + 1], single, rtol=1e-4, atol=2e-5)
            assert single.shape[2:] == (67, 45) or name.startswith("hx")


@torch.no_grad()
def test_a_single_pixel_has_a_mask(shared: Path) -> None:
    assert build(shared, "u2netp")(torch.rand(1, 3, 1, 1))[0].shape == (1, 1, 1, 1)


@pytest.fixture
def anime(shared: Path) -> dict[str, Tensor]:
    """The keys of SkyTNT's Lightning file: the network, and the encoder of masks that supervised its training."""
    keys = goldens.keys(shared)["isnet_gt_encoder"]
    state = {
        f"net.{key}": torch.rand(()).to(value.dtype).expand(value.shape) for key, value in ISNet().state_dict().items()
    }
    return state | {f"gt_encoder.{name}": torch.zeros(()).expand(shape) for name, shape in keys}


def test_the_anime_file_loads_without_the_encoder_of_masks(tmp_path: Path, anime: dict[str, Tensor]) -> None:
    torch.save({"epoch": 3, "state_dict": anime}, tmp_path / "isnetis.ckpt")
    loaded = load_network(tmp_path / "isnetis.ckpt")
    assert loaded.kind == "isnet"
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, anime[f"net.{name}"])


def test_another_part_in_the_anime_file_is_refused(tmp_path: Path, anime: dict[str, Tensor]) -> None:
    torch.save({"state_dict": anime | {"teacher.weight": torch.zeros(1)}}, tmp_path / "isnetis.ckpt")
    with pytest.raises(WeightsError, match=r"looks like isnet but has unknown teacher\.weight"):
        load_network(tmp_path / "isnetis.ckpt")


def test_the_encoder_of_masks_alone_is_no_network(tmp_path: Path, anime: dict[str, Tensor]) -> None:
    state = {name.replace("gt_encoder.", "net."): v for name, v in anime.items() if name.startswith("gt_encoder.")}
    torch.save({"state_dict": state}, tmp_path / "gt.ckpt")
    with pytest.raises(WeightsError, match="is none of the known networks"):
        load_network(tmp_path / "gt.ckpt")


def test_the_other_net_of_the_same_names_is_told_apart(tmp_path: Path) -> None:
    torch.save({f"module.{k}": v for k, v in U2Net("lite", deeper=True).state_dict().items()}, tmp_path / "net.pth")
    loaded = load_network(tmp_path / "net.pth")
    assert isinstance(loaded.network, U2Net)
    assert not loaded.network.probabilities
