"""STTN is the official one at the only size there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.networks.inpaint import e2fgvi, propainter, sttn
from actors.networks.inpaint.sttn import STTN
from tests.actors.networks import goldens


@torch.no_grad()
def test_outputs_equal_the_official_implementation(shared: Path) -> None:
    network = goldens.fill(shared, STTN, gain=0.9)
    encoded = network.encode(goldens.arrays(shared, "sttn")["frames"][None])
    mixed = network.transformer(encoded)[0]
    decoded = network.decoder(mixed)
    result = torch.tanh(decoded)
    outputs = {
        "enc_s4": encoded[0, :, :16, ::4, ::4],
        "infer_s4": mixed[:, :16, ::4, ::4],
        "pre_s6": decoded[:, :, 1::6, 1::6],
        "out_s3": result[:, :, 1::3, 1::3],
        "out_crop": result[:, :, 100:140, 200:264],
        "full_mean": result.mean((2, 3)),
        "full_std": result.std((2, 3)),
    }
    goldens.check(shared, "sttn", outputs)


@pytest.fixture(scope="module")
def small(shared: Path) -> STTN:
    """One block instead of eight."""
    return goldens.fill(shared, lambda: STTN(blocks=1), gain=0.9)


def clip(batch: int, count: int) -> torch.Tensor:
    return torch.rand(batch, count, 3, 240, 432, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.fixture(scope="module")
def alone(small: STTN) -> torch.Tensor:
    """The first of two clips, inpainted in a call of its own."""
    with torch.no_grad():
        return small(clip(2, 2)[:1])


@pytest.mark.usefixtures("meta")
def test_the_state_dict_has_the_official_names(shared: Path) -> None:
    goldens.check_keys(shared, "sttn", STTN())


@pytest.mark.parametrize("blocks", [1, 8])
@pytest.mark.usefixtures("meta")
def test_the_network_is_recognised(blocks: int) -> None:
    original = STTN(blocks)
    found = sttn.detect(original.state_dict())
    assert found is not None
    found.load_state_dict(original.state_dict())


@pytest.mark.usefixtures("meta")
def test_inpainting_networks_do_not_take_each_other_for_their_own(small: STTN) -> None:
    assert e2fgvi.detect(small.state_dict()) is None
    assert propainter.detect(small.state_dict()) is None
    assert sttn.detect(e2fgvi.E2FGVI().state_dict()) is None
    assert sttn.detect(propainter.ProPainter().state_dict()) is None


def test_every_tensor_of_the_state_dict_matters(small: STTN) -> None:
    frames = clip(1, 1)
    dead = goldens.dead(small, lambda: [small(frames)])
    # One amount added to all of a query's products changes nothing: a softmax follows. Rounding hides it from some.
    assert dead <= {"transformer.0.attention.key_embedding.bias"}


@torch.no_grad()
def test_two_clips_at_once_are_as_two_calls_and_references_are_not_decoded(small: STTN, alone: torch.Tensor) -> None:
    frames = clip(2, 2)
    apart = torch.cat([alone, small(frames[1:])])
    torch.testing.assert_close(small(frames, 1), apart[:, :1], rtol=0, atol=2e-5)


@torch.no_grad()
def test_features_can_be_kept_between_calls(small: STTN, alone: torch.Tensor) -> None:
    frames = clip(2, 2)[:1]
    kept = torch.cat([small.encode(frames[:, :1]), small.encode(frames[:, 1:])], 1)
    torch.testing.assert_close(small.inpaint(kept), alone, rtol=0, atol=2e-5)


def test_other_sizes_are_refused(small: STTN) -> None:
    with pytest.raises(ValueError, match="must be 432x240, got 240x432"):
        small(torch.zeros(1, 2, 3, 432, 240))
