"""Cutie agrees with the official implementation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.networks.tracking import cutie
from actors.networks.tracking.bank import Limits
from actors.networks.tracking.cutie import Cutie
from actors.networks.tracking.cutie.network import Encoder, staggered
from actors.networks.tracking.masks import Mask, from_labels
from tests.actors.networks import goldens

#: The stored calls.
LIMITS = {
    "cutie": Limits(every=2, long_term=False, max_frames=3),
    "cutie_long": Limits(every=1, max_frames=4, min_frames=2, prototypes=24, max_long=70, long_spare=10),
}


@pytest.fixture(scope="module")
def network(shared: Path) -> Cutie:
    return goldens.fill(shared, Cutie, keep=["inv_freq"])


def outputs(network: Cutie, shared: Path, entry: str) -> dict[str, Tensor]:
    arrays = goldens.arrays(shared, entry)
    frames, planes = arrays["frames"], arrays["mask"]
    labels = torch.zeros(planes.shape[1:], dtype=torch.long)
    for number, plane in enumerate(planes, 1):
        labels[plane > 0.5] = number
    mask: Mask | None = from_labels(labels, tuple(range(1, len(planes) + 1)))

    image = network.normalise(frames[:1])
    features = network.pixel_encoder(image)
    pixel = network.pix_feat_proj(features[-1])
    projected = network.key_proj(features[-1])
    nothing = torch.zeros(len(planes), *pixel.shape[1:])
    value, sensory = network.mask_encoder.encode(image, pixel, nothing, planes)
    summaries = network.object_summarizer(torch.nn.functional.avg_pool2d(planes, 16), value)
    readout, logits = network.object_transformer(value, summaries)
    found = {
        "key0": projected.key,
        "shrinkage0": projected.shrinkage,
        "selection0": projected.selection,
        "pix_feat0": pixel[:, :16],
        "value0": value[:, :16],
        "sensory0": sensory[:, :16],
        "obj0": summaries,
        "readout0": readout[:, :16],
        "aux_logits0": torch.stack(logits),
    }
    memory, probs = None, []
    for frame in frames:
        prob, memory = network.step(frame, mask, memory, LIMITS[entry])
        probs.append(prob)
        mask = None
    assert memory is not None
    return found | {"prob": torch.stack(probs), "sensory_last": memory.sensory[:, :16]}


@pytest.mark.parametrize("entry", LIMITS)
@torch.no_grad()
def test_a_video_equals_the_official_implementation(network: Cutie, shared: Path, entry: str) -> None:
    goldens.check(shared, entry, outputs(network, shared, entry))


@pytest.mark.parametrize(("encoder", "entry"), [("resnet50", "cutie"), ("resnet18", "cutie_small")])
@pytest.mark.usefixtures("meta")
def test_state_dict_has_the_official_names_shapes_and_order_and_tells_its_network(
    shared: Path, encoder: Encoder, entry: str
) -> None:
    network = Cutie(encoder)
    goldens.check_keys(shared, entry, network)
    built = cutie.detect(network.state_dict())
    assert built is not None
    built.load_state_dict(network.state_dict(), strict=True)


def test_foreign_state_dicts_are_not_taken_for_cutie() -> None:
    assert cutie.detect({}) is None
    assert cutie.detect({"key_proj.key_proj.weight": torch.zeros(64, 1024, 3, 3)}) is None


def test_only_the_training_head_does_not_matter(network: Cutie, shared: Path) -> None:
    head = {f"aux_computer.sensory_aux.projection.{name}" for name in ("weight", "bias")}
    assert goldens.dead(network, lambda: outputs(network, shared, "cutie").values()) == head


@pytest.mark.parametrize(
    ("every", "stagger", "distances"), [(5, 5, {1, 2, 3, 4, 5}), (2, 5, {1, 2}), (10, 4, {1, 4, 7, 10}), (4, 2, {1, 4})]
)
def test_sensory_updates_are_spread_between_stored_frames(every: int, stagger: int, distances: set[int]) -> None:
    assert staggered(Limits(every=every, stagger=stagger)) == distances
