"""E2FGVI is the official one, in both sizes, at every size and number of frames it is made for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.networks.inpaint import e2fgvi, flow_completion, propainter
from actors.networks.inpaint.e2fgvi import E2FGVI
from actors.networks.inpaint.tokens import SoftComposition
from tests.actors.networks import goldens


@pytest.fixture(scope="module")
def network(shared: Path) -> E2FGVI:
    return goldens.fill(shared, E2FGVI, keep=("update_spynet.mean", "update_spynet.std"))


def outputs(network: E2FGVI, gold: dict[str, Tensor]) -> dict[str, Tensor]:
    frames, local = gold["masked_frames"][None], gold["flow_f"].shape[0] + 1
    ahead, back = network.flows(frames[:, :local])
    features = network.encoder(frames[0])
    size = (features.shape[2], features.shape[3])
    completed = network.feat_prop_module(features[None, :local], (ahead, back))[0]
    tokens = network.ss(torch.cat([completed, features[local:]]))
    return {
        "out": network(frames, local)[0],
        "flow_f": ahead[0],
        "flow_b": back[0],
        "enc": features[:, :8],
        "prop": completed[:, :8],
        "tokens": tokens[..., :16],
        "block0": network.transformer[0](tokens[None], size)[0, ..., :16],
    }


@torch.no_grad()
def test_outputs_equal_the_official_implementation(shared: Path, network: E2FGVI) -> None:
    goldens.check(shared, "e2fgvi_hq", outputs(network, goldens.arrays(shared, "e2fgvi_hq")))


@pytest.mark.parametrize(("entry", "high_quality"), [("e2fgvi_hq", True), ("e2fgvi", False)])
@pytest.mark.usefixtures("meta")
def test_the_state_dict_has_the_official_names_and_is_recognised(shared: Path, entry: str, high_quality: bool) -> None:
    original = E2FGVI(high_quality)
    goldens.check_keys(shared, entry, original)
    found = e2fgvi.detect(original.state_dict())
    assert found is not None
    assert found.high_quality == high_quality
    found.load_state_dict(original.state_dict())


@pytest.mark.usefixtures("meta")
def test_inpainting_networks_do_not_take_each_other_for_their_own(network: E2FGVI) -> None:
    state = network.state_dict()
    assert flow_completion.detect(state) is None
    assert propainter.detect(state) is None
    assert e2fgvi.detect(propainter.ProPainter().state_dict()) is None
    assert e2fgvi.detect(flow_completion.FlowCompletion().state_dict()) is None


def test_every_tensor_of_the_state_dict_matters(shared: Path, network: E2FGVI) -> None:
    gold = goldens.arrays(shared, "e2fgvi_hq")
    frames, local = gold["masked_frames"][None], gold["flow_f"].shape[0] + 1
    assert goldens.dead(network, lambda: [network(frames, local), *network.flows(frames[:, :local])]) == set()


@pytest.mark.parametrize("buffer", ["mean", "std"])
@torch.no_grad()
def test_the_flow_s_colour_normalisation_is_the_checkpoint_s(network: E2FGVI, buffer: str) -> None:
    frames = torch.rand(1, 2, 3, 60, 108)
    before = network.flows(frames)[0]
    value = network.update_spynet.get_buffer(buffer)
    value += 0.1
    changed = network.flows(frames)[0]
    value -= 0.1
    assert (changed - before).abs().max() > 1e-3


@torch.no_grad()
def test_two_clips_at_once_are_as_two_calls(network: E2FGVI) -> None:
    frames = torch.rand(2, 2, 3, 60, 216, generator=torch.Generator().manual_seed(1)) * 2 - 1
    apart = torch.cat([network(frames[:1], 2), network(frames[1:], 2)])
    torch.testing.assert_close(network(frames, 2), apart, rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize(("count", "local", "height", "width"), [(1, 1, 60, 108), (3, 3, 120, 108)])
def test_other_sizes_and_numbers_of_frames(network: E2FGVI, count: int, local: int, height: int, width: int) -> None:
    result = network(torch.rand(1, count, 3, height, width), local)
    assert result.shape == (1, count, 3, height, width)
    assert result.isfinite().all()


@torch.no_grad()
def test_the_base_model_adds_a_bias_at_every_place() -> None:
    composition, tokens = SoftComposition(2, fixed=(7, 9)), torch.rand(1, 3, 3, 512)
    plain = composition(tokens, (7, 9))
    assert composition.bias is not None
    composition.bias += torch.arange(2 * 7 * 9.0).view(2, 7, 9)
    torch.testing.assert_close(composition(tokens, (7, 9)), plain + composition.bias)


def test_wrong_sizes_and_counts_are_refused(network: E2FGVI) -> None:
    with pytest.raises(ValueError, match="multiple of 60 and the width of 108, got 432x250"):
        network(torch.zeros(1, 2, 3, 250, 432), 2)
    with pytest.raises(ValueError, match="432x240 only, got 216x120"):
        E2FGVI(high_quality=False)(torch.zeros(1, 2, 3, 120, 216), 2)
    with pytest.raises(ValueError, match="3 local frames of 2"):
        network(torch.zeros(1, 2, 3, 60, 108), 3)
