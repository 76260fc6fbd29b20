"""LaMa agrees with the official network, and fills holes of pictures of any size."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.networks.lama import LaMa, detect, inpaint
from tests.actors.networks import goldens


@pytest.fixture(scope="module")
def network(shared: Path) -> LaMa:
    return goldens.fill(shared, LaMa, gain=1.2)


@pytest.fixture(scope="module")
def short(shared: Path) -> LaMa:
    """With two of the 18 blocks, for what does not depend on their number."""
    return goldens.fill(shared, lambda: LaMa(blocks=2), gain=1.2)


def picture(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(count, 3, height, width, generator=generator)
    return image, (torch.rand(count, 1, height, width, generator=generator) > 0.6).float()


def outputs(network: LaMa, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    block = network.model[5].register_forward_hook(
        lambda _module, _inputs, pair: found.update(block0_local=pair[0], block0_global=pair[1])
    )
    last = network.model[-2].register_forward_hook(lambda _module, _inputs, logit: found.update(logit=logit))
    try:
        y = network(x)
        return {**found, "y": y}
    finally:
        block.remove()
        last.remove()


@torch.inference_mode()
def test_outputs_equal_the_official_network(shared: Path, network: LaMa) -> None:
    goldens.check(shared, "lama", outputs(network, goldens.arrays(shared, "lama")["x"]))


def test_state_dict_has_the_official_names_shapes_and_order(shared: Path, network: LaMa) -> None:
    goldens.check_keys(shared, "lama", network)


@pytest.mark.parametrize("blocks", [1, 9])
@pytest.mark.usefixtures("meta")
def test_blocks_are_counted_in_the_state_dict(blocks: int) -> None:
    state = LaMa(blocks).state_dict()
    found = detect(state)
    assert found is not None
    assert found.blocks == blocks
    found.load_state_dict(state, strict=True)
    state["model.400000000.conv1.ffc.convl2l.weight"] = state["model.5.conv1.ffc.convl2l.weight"]
    again = detect(state)
    assert again is not None
    assert again.blocks == blocks
    assert detect({}) is None


def test_every_tensor_of_the_state_dict_matters(shared: Path, network: LaMa) -> None:
    x = goldens.arrays(shared, "lama")["x"]
    assert goldens.dead(network, lambda: outputs(network, x).values()) == set()


@torch.inference_mode()
def test_a_batch_gives_what_its_pictures_give_in_any_memory_layout(short: LaMa) -> None:
    x = torch.cat(picture(2, 48, 40), 1)
    together = short(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(together, torch.cat([short(x[:1]), short(x[1:])]), rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(64, 80), (61, 33), (17, 40), (9, 70), (5, 3)])
def test_any_size_is_filled_as_the_picture_mirrored_to_the_next_one(short: LaMa, height: int, width: int) -> None:
    image, mask = picture(2, height, width)
    filled = inpaint(short, image, mask)

    x = torch.cat([image * (1 - mask), mask], 1)
    to_height, to_width = max(16, -(-height // 8) * 8), max(16, -(-width // 8) * 8)
    padding = ((0, 0), (0, 0), (0, to_height - height), (0, to_width - width))
    whole = short(torch.from_numpy(np.pad(x.numpy(), padding, mode="symmetric")))
    expected = torch.where(mask > 0, whole[..., :height, :width], image)
    assert torch.equal(filled, expected)


@torch.inference_mode()
def test_only_the_hole_is_painted_and_what_it_hid_has_no_effect(short: LaMa) -> None:
    image, mask = picture(1, 40, 36)
    hidden = torch.where(mask > 0, torch.ones_like(image), image)
    filled = inpaint(short, image, mask)
    assert torch.equal(filled, inpaint(short, hidden, mask * 0.01))
    kept = (mask == 0).expand_as(image)
    assert torch.equal(filled[kept], image[kept])
    assert (filled[~kept] != image[~kept]).float().mean() > 0.99


@torch.inference_mode()
def test_transforms_stay_in_single_precision_when_the_rest_is_half(short: LaMa) -> None:
    """At 1/8 the picture is 3 x 7, and half-precision transforms know only powers of two."""
    image, mask = picture(1, 24, 56)
    expected = inpaint(short, image, mask)
    for dtype in (torch.float16, torch.bfloat16):
        ours = inpaint(copy.deepcopy(short).to(dtype), image, mask)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, expected, rtol=0, atol=0.1)


def test_other_inputs_are_refused_with_the_rule(short: LaMa) -> None:
    for height, width in ((60, 64), (64, 65), (8, 64)):
        with pytest.raises(ValueError, match=f"multiples of 8 and at least 16, got {width}x{height}"):
            short(torch.zeros(1, 4, height, width))
    with pytest.raises(ValueError, match=r"\[B,4,H,W\]"):
        short(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="the mask of an image"):
        inpaint(short, torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 64, 32))
