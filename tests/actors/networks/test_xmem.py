"""XMem agrees with the official implementation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.networks.tracking import xmem
from actors.networks.tracking.bank import Limits
from actors.networks.tracking.masks import Mask
from actors.networks.tracking.xmem import XMem
from tests.actors.networks import goldens

#: The stored calls: without long-term memory nothing is dropped.
LIMITS = {
    "xmem": Limits(every=2, long_term=False),
    "xmem_long": Limits(every=1, max_frames=4, min_frames=2, prototypes=24, max_long=60),
}


@pytest.fixture(scope="module")
def network(shared: Path) -> XMem:
    return goldens.fill(shared, XMem, gain=1.2)


def outputs(network: XMem, shared: Path, entry: str) -> dict[str, Tensor]:
    arrays = goldens.arrays(shared, entry)
    frames, planes = arrays["frames"], arrays["mask"]
    mask: Mask | None = Mask(tuple(range(1, len(planes) + 1)), planes)
    features = network.key_encoder(frames[:1])
    projected = network.key_proj(features[-1])
    nothing = torch.zeros(len(planes), network.hidden, *features[-1].shape[-2:])
    value, sensory = network.value_encoder.encode(frames[:1], features[-1], nothing, planes)
    found = {
        "key0": projected.key,
        "shrinkage0": projected.shrinkage,
        "selection0": projected.selection,
        "f16_0": features[2][:, :16],
        "f8_0": features[1][:, :8],
        "value0": value[:, :32],
        "hidden0": sensory,
    }
    memory, probs = None, []
    for frame in frames:
        prob, memory = network.step(frame, mask, memory, LIMITS[entry])
        probs.append(prob)
        mask = None
    assert memory is not None
    found |= {"prob": torch.stack(probs), "hidden": memory.sensory}
    if entry == "xmem_long":
        bank = memory.banks[0]
        found |= {"long_key": bank.long.key[None], "long_value": bank.long.value[:, :16]}
        found["work_size"] = torch.tensor([len(bank.first) + len(bank.recent), len(bank.long)])
    return found


@pytest.mark.parametrize("entry", LIMITS)
@torch.no_grad()
def test_a_video_equals_the_official_implementation(network: XMem, shared: Path, entry: str) -> None:
    goldens.check(shared, entry, outputs(network, shared, entry))


def test_state_dict_has_the_official_names_shapes_and_order(network: XMem, shared: Path) -> None:
    goldens.check_keys(shared, "xmem", network)


@pytest.mark.parametrize("sizes", [(64, 512, 64, 512), (16, 64, 8, 32)])
@pytest.mark.usefixtures("meta")
def test_a_state_dict_alone_tells_its_network(sizes: tuple[int, int, int, int]) -> None:
    state = XMem(*sizes).state_dict()
    built = xmem.detect(state)
    assert built is not None
    built.load_state_dict(state, strict=True)


def test_foreign_state_dicts_are_not_taken_for_xmem() -> None:
    assert xmem.detect({}) is None
    assert xmem.detect({"key_proj.key_proj.weight": torch.zeros(64, 256, 3, 3)}) is None


def test_every_tensor_of_the_state_dict_matters(network: XMem, shared: Path) -> None:
    assert goldens.dead(network, lambda: outputs(network, shared, "xmem").values()) == set()


@torch.no_grad()
def test_frames_are_encoded_together_as_one_by_one(network: XMem) -> None:
    frames = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(2))
    both = network.key_proj(network.key_encoder(frames)[-1])
    for index in range(2):
        alone = network.key_proj(network.key_encoder(frames[index : index + 1])[-1])
        torch.testing.assert_close(both.key[index], alone.key[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(both.shrinkage[index], alone.shrinkage[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(both.selection[index], alone.selection[0], rtol=0, atol=1e-5)
