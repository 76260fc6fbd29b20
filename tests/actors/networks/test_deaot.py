"""DeAOT agrees with the official implementation."""

from __future__ import annotations

from functools import partial
from math import pi
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.networks.tracking import deaot
from actors.networks.tracking.deaot import DeAOT, DeAOTLimits, DeAOTMemory
from actors.networks.tracking.deaot.network import Encoder
from actors.networks.tracking.masks import Mask, from_labels, sine_positions
from tests.actors.networks import goldens

SIZES: dict[str, tuple[Encoder, int]] = {
    "deaott": ("mobilenetv2", 1),
    "deaots": ("mobilenetv2", 2),
    "deaotb": ("mobilenetv2", 3),
    "deaotl": ("mobilenetv2", 3),
    "r50_deaotl": ("resnet50", 3),
}
GAINS = {"deaott": 1.4, "r50_deaotl": 1.2}


@pytest.fixture(scope="module")
def networks(shared: Path) -> dict[str, Any]:
    return {entry: goldens.fill(shared, partial(DeAOT, *SIZES[entry]), gain=gain) for entry, gain in GAINS.items()}


def outputs(network: DeAOT, shared: Path, entry: str) -> dict[str, Tensor]:
    arrays = goldens.arrays(shared, entry)
    frames, planes = arrays["frames"], arrays["mask"]
    labels = torch.zeros(planes.shape[1:], dtype=torch.long)
    for number, plane in enumerate(planes, 1):
        labels[plane > 0.5] = number
    mask: Mask | None = from_labels(labels, tuple(range(1, len(planes) + 1)))

    features, top = network.encode(frames[:1])
    embedding = network.identify(torch.cat([(labels == 0)[None], planes > 0]).float())
    found = {
        "enc4": features[0][:, :8],
        "enc16": top[:, :32],
        "id_emb": embedding.permute(2, 0, 1)[None, :32],
        "pos": positions(*top.shape[1:])[None, :32],
    }
    low: list[Tensor] = []
    hook = network.decoder.register_forward_hook(lambda *call: low.append(call[-1][0, : 1 + len(planes)]))
    memory, probs = None, []
    for frame in frames:
        prob, memory = network.step(frame, mask, memory, DeAOTLimits(every=2))
        probs.append(prob)
        mask = None
    hook.remove()
    return found | {"prob": torch.stack(probs[1:]), "low_logits": torch.stack(low)}


def positions(channels: int, height: int, width: int) -> Tensor:
    """The official class has positions [C,h,w] that no layer of it reads."""
    frequencies = 10_000.0 ** -(torch.arange(0, channels // 2, 2) / (channels // 2))
    y = sine_positions(height, frequencies, 2 * pi)[:, None].expand(-1, width, -1)
    x = sine_positions(width, frequencies, 2 * pi)[None].expand(height, -1, -1)
    return torch.cat([y, x], -1).permute(2, 0, 1)


@pytest.mark.parametrize("entry", GAINS)
@torch.no_grad()
def test_a_video_equals_the_official_implementation(networks: dict[str, Any], shared: Path, entry: str) -> None:
    goldens.check(shared, entry, outputs(networks[entry], shared, entry))


@pytest.mark.parametrize("entry", SIZES)
@pytest.mark.usefixtures("meta")
def test_state_dict_has_the_official_names_shapes_and_order_and_tells_its_network(shared: Path, entry: str) -> None:
    network = DeAOT(*SIZES[entry])
    goldens.check_keys(shared, entry, network)
    built = deaot.detect(network.state_dict())
    assert built is not None
    built.load_state_dict(network.state_dict(), strict=True)


@pytest.mark.usefixtures("meta")
def test_foreign_state_dicts_are_not_taken_for_deaot() -> None:
    state = DeAOT(channels=16).state_dict()
    assert deaot.detect({}) is None
    assert deaot.detect({key: value for key, value in state.items() if not key.startswith("encoder.")}) is None
    assert deaot.detect({key.replace("LSTT.layers.0", "LSTT.layers.7"): value for key, value in state.items()}) is None


@pytest.mark.parametrize("entry", GAINS)
def test_every_tensor_of_the_state_dict_matters(networks: dict[str, Any], shared: Path, entry: str) -> None:
    assert goldens.dead(networks[entry], lambda: outputs(networks[entry], shared, entry).values()) == set()


@torch.no_grad()
def test_frames_are_encoded_together_as_one_by_one(networks: dict[str, Any]) -> None:
    frames = torch.randn(2, 3, 49, 81, generator=torch.Generator().manual_seed(2))
    for network in networks.values():
        _, both = network.encode(frames)
        alone = torch.cat([network.encode(frames[index : index + 1])[1] for index in range(2)])
        torch.testing.assert_close(both, alone, rtol=0, atol=1e-4)


def test_beyond_the_limit_the_oldest_frames_without_a_mask_go_first() -> None:
    network = DeAOT(channels=16).eval()
    frame = torch.zeros(3, 17, 17)
    memory: DeAOTMemory | None = None
    with torch.no_grad():
        for time in range(12):
            mask = from_labels(torch.full((17, 17), time + 1), (time + 1,)) if time in (0, 5, 6) else None
            _, memory = network.step(frame, mask, memory, DeAOTLimits(every=2, max_frames=3))
    assert memory is not None
    assert memory.given == (1, 1, 1)
    assert memory.long[0].key.shape == (3, 2, 2, 8)


def test_what_cannot_be_is_an_error_that_says_why() -> None:
    network = DeAOT(channels=16, max_objects=2)
    with pytest.raises(ValueError, match="one more than multiples of 16, got 32x49"):
        network.step(torch.zeros(3, 32, 49), None, None)
    with pytest.raises(ValueError, match="3 objects, of which this network can tell 2 apart"):
        network.step(torch.zeros(3, 17, 17), Mask((1, 2, 3), torch.zeros(3, 17, 17)), None)
    with pytest.raises(ValueError, match="at least 1"):
        DeAOTLimits(max_frames=0)
