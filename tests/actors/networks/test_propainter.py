"""ProPainter and its flow completion are the official ones, at any size and number of frames they are made for."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from actors.networks.inpaint import flow_completion, propainter
from actors.networks.inpaint.flow_completion import FlowCompletion
from actors.networks.inpaint.propainter import ProPainter, propagate_pixels
from actors.networks.inpaint.sparse import windows_with_holes
from tests.actors.networks import goldens


@pytest.fixture(scope="module")
def completion(shared: Path) -> FlowCompletion:
    return goldens.fill(shared, FlowCompletion, gain=1.3)


@pytest.fixture(scope="module")
def painter(shared: Path) -> ProPainter:
    return goldens.fill(shared, ProPainter)


def first_output(module: nn.Module, call: Callable[[], object]) -> Tensor:
    """What the module returned when it was first called during `call`."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    call()
    handle.remove()
    return seen[0]


def completion_outputs(network: FlowCompletion, gold: dict[str, Tensor]) -> dict[str, Tensor]:
    flows, masks = (gold["flow_f"], gold["flow_b"]), gold["masks"]
    ahead, back = network.predict(flows, masks)
    combined = network(flows, masks)[0]
    return {"pred_f": ahead[0], "pred_b": back[0], "comb_f": combined[0], "edge": network.edgeDetector(ahead[0])}


def painter_inputs(gold: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor, int]:
    frames, masks, flows = gold["frames"], gold["masks"], (gold["flow_f"], gold["flow_b"])
    local = flows[0].shape[1] + 1
    masked = frames * (1 - masks)
    pixels, missing = propagate_pixels(masked[:, :local], flows, masks[:, :local])
    filled = masked[:, :local] + pixels * masks[:, :local]
    return (
        torch.cat([filled, masked[:, local:]], 1),
        flows,
        masks,
        torch.cat([missing, masks[:, local:]], 1),
        local,
    )


def painter_outputs(network: ProPainter, gold: dict[str, Tensor]) -> dict[str, Tensor]:
    inputs = painter_inputs(gold)
    frames, _, masks, missing, local = inputs
    fused: list[Tensor] = []
    handle = network.feat_prop_module.fuse.register_forward_hook(lambda _module, given, _output: fused.append(given[0]))
    result = network(*inputs)
    handle.remove()
    features = network.encoder(torch.cat([frames, masks, missing], 2).flatten(0, 1))
    completed = first_output(network.feat_prop_module, functools.partial(network, *inputs))
    tokens = network.ss(features)[None]
    everywhere = windows_with_holes(torch.ones(1, local, *tokens.shape[2:4]))
    size = (features.shape[2], features.shape[3])
    return {
        "prop_frames": frames[0, :local],
        "updated_masks": missing[0, :local],
        "out": result[0],
        "enc": features[:, :8],
        "prop_b": fused[0][:, :4],
        "prop": completed[0, :, :8],
        "block0": network.transformers.transformer[0](tokens, size, everywhere, slice(0, None, 2))[0, ..., :16],
    }


@torch.no_grad()
def test_flow_completion_equals_the_official_one(shared: Path, completion: FlowCompletion) -> None:
    goldens.check(shared, "propainter_flow", completion_outputs(completion, goldens.arrays(shared, "propainter_flow")))


@torch.no_grad()
def test_propainter_equals_the_official_one(shared: Path, painter: ProPainter) -> None:
    goldens.check(shared, "propainter", painter_outputs(painter, goldens.arrays(shared, "propainter")))


@pytest.mark.parametrize(
    ("entry", "network", "detect", "parameters"),
    [
        ("propainter_flow", FlowCompletion, flow_completion.detect, 5_079_555),
        ("propainter", ProPainter, propainter.detect, 39_429_667),
    ],
)
@pytest.mark.usefixtures("meta")
def test_the_state_dict_has_the_official_names_and_is_recognised(
    shared: Path, entry: str, network: type[nn.Module], detect: Callable[..., nn.Module | None], parameters: int
) -> None:
    original = network()
    goldens.check_keys(shared, entry, original)
    found = detect(original.state_dict())
    assert found is not None
    found.load_state_dict(original.state_dict())
    assert sum(value.numel() for value in found.parameters()) == parameters


@pytest.mark.usefixtures("meta")
def test_neither_network_takes_the_other_for_its_own() -> None:
    assert flow_completion.detect(ProPainter().state_dict()) is None
    assert propainter.detect(FlowCompletion().state_dict()) is None


def test_every_tensor_of_the_state_dict_matters(shared: Path, completion: FlowCompletion, painter: ProPainter) -> None:
    gold = goldens.arrays(shared, "propainter_flow")
    assert goldens.dead(completion, lambda: completion_outputs(completion, gold).values()) == set()
    gold = goldens.arrays(shared, "propainter")
    dead = goldens.dead(painter, lambda: [painter(*painter_inputs(gold))])
    # One amount added to all of a query's products changes nothing: a softmax follows. Rounding hides it from some.
    assert all(name.endswith("attention.key.bias") for name in dead)


def clip(
    count: int, local: int, height: int, width: int, seed: int
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor, int]:
    """Arguments of one call: noise, a hole in a corner, a steady motion."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(1, count, 3, height, width, generator=generator) * 2 - 1
    masks = torch.zeros(1, count, 1, height, width)
    masks[..., : height // 3, : width // 4] = 1
    ahead = torch.randn(1, local - 1, 2, height, width, generator=generator) * 0.2 + seed
    return frames * (1 - masks), (ahead, -ahead), masks, masks, local


@torch.no_grad()
def test_two_clips_at_once_are_as_two_calls(painter: ProPainter, completion: FlowCompletion) -> None:
    one, two = clip(3, 2, 44, 72, seed=1), clip(3, 2, 44, 72, seed=2)
    two[2][:] = 0  # a clip without holes beside one with
    both = [torch.cat(pair) for pair in ((one[0], two[0]), (one[2], two[2]))]
    flows = tuple(torch.cat(pair) for pair in zip(one[1], two[1], strict=True))
    apart = torch.cat([painter(*one), painter(*two)])
    torch.testing.assert_close(painter(both[0], flows, both[1], both[1], 2), apart, rtol=0, atol=2e-5)

    one, two = clip(4, 4, 40, 72, seed=1), clip(4, 4, 40, 72, seed=2)
    flows = tuple(torch.cat(pair) for pair in zip(one[1], two[1], strict=True))
    together = completion(flows, torch.cat([one[2], two[2]]))
    for direction in (0, 1):
        alone = torch.cat([completion(single[1], single[2])[direction] for single in (one, two)])
        torch.testing.assert_close(together[direction], alone, rtol=0, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize(("count", "local", "height", "width"), [(2, 1, 36, 52), (5, 5, 100, 64)])
def test_other_sizes_and_numbers_of_frames(
    painter: ProPainter, count: int, local: int, height: int, width: int
) -> None:
    result = painter(*clip(count, local, height, width, seed=1))
    assert result.shape == (1, local, 3, height, width)
    assert result.isfinite().all()


@torch.no_grad()
def test_only_windows_with_holes_look_at_other_frames(painter: ProPainter) -> None:
    attention = painter.get_submodule("transformers.transformer.0.attention")
    tokens = torch.rand(1, 4, 5, 18, 512)
    other = tokens.clone()
    other[:, 2] += 1
    masks = torch.zeros(1, 2, 5, 18)
    masks[:, 1, 2, 3] = 1  # the left one of two windows, in the second local frame only
    windows = windows_with_holes(masks)
    change = (attention(tokens, windows, slice(0, None, 2)) - attention(other, windows, slice(0, None, 2))).abs()
    assert change[:, 0, :, :9].min() > 0
    assert change[:, 0, :, 9:].max() == 0


def test_wrong_sizes_and_counts_are_refused(painter: ProPainter, completion: FlowCompletion) -> None:
    with pytest.raises(ValueError, match="multiples of 4, got 72x42"):
        painter(*clip(3, 2, 42, 72, seed=1))
    with pytest.raises(ValueError, match="at least two frames"):
        painter(*clip(1, 1, 40, 72, seed=1))
    frames, flows, masks, missing, _ = clip(3, 2, 40, 72, seed=1)
    with pytest.raises(ValueError, match="1 flows do not belong to 3 local frames of 3"):
        painter(frames, flows, masks, missing, 3)
    with pytest.raises(ValueError, match="3 masks do not belong to 1 flows"):
        completion(flows, masks)
    with pytest.raises(ValueError, match="multiples of 8, got 76x40"):
        completion(*clip(2, 2, 40, 76, seed=1)[1:3])


@torch.no_grad()
def test_holes_take_pixels_along_the_flow_and_tell_what_is_missing() -> None:
    frames = torch.arange(8.0).expand(1, 3, 1, 4, 8) + 10 * torch.arange(3).view(1, 3, 1, 1, 1)
    masks = torch.zeros(1, 3, 1, 4, 8)
    masks[:, 0, :, :, 2:4] = 1
    masks[:, :, :, :, 7] = 1  # hidden in every frame
    flow = torch.zeros(1, 2, 2, 4, 8)
    flow[:, :, 0] = 1  # all moves right by one
    filled, missing = propagate_pixels(frames * (1 - masks), (flow, -flow), masks)
    assert filled[0, 0, 0, 1].tolist()[2:4] == [13, 14]
    assert missing[0, 0, 0, 1].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


def test_a_network_can_be_copied_after_use(completion: FlowCompletion) -> None:
    with torch.inference_mode():
        _, flows, masks, _, _ = clip(2, 2, 16, 16, seed=1)
        assert torch.equal(copy.deepcopy(completion)(flows, masks)[0], completion(flows, masks)[0])
