"""RAFT and GMA agree with the official networks, at any size, batch, number of iterations and starting flow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.networks.raft import GMA, RAFT, detect, detect_gma, estimate
from actors.networks.raft.correlation import CorrelationPyramid
from actors.networks.raft.update import SMALL
from tests.actors.networks import goldens

NETWORKS: dict[str, Callable[[], RAFT]] = {"raft": RAFT, "raft_small": lambda: RAFT(SMALL), "gma": GMA}
TIES = {"raft": "raft", "gma": "gma", "raft_small": None}


@pytest.fixture(params=NETWORKS, scope="module")
def entry(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def network(shared: Path, entry: str) -> RAFT:
    return goldens.fill(shared, NETWORKS[entry], ties=TIES[entry])


def frames(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    images = 255 * torch.rand(2 * count, 3, height, width, generator=torch.Generator().manual_seed(1))
    return images[:count], images[count:]


def outputs(network: RAFT, image1: Tensor, image2: Tensor) -> dict[str, Tensor]:
    low, full = network(image1, image2, iters=4)
    return {
        "flow_low": low,
        "flow_up": full,
        "flow_low_1": network(image1, image2, iters=1)[0],
        "fmap1": network.fnet(2 * image1 / 255 - 1)[:, :32],
    }


@torch.inference_mode()
def test_flow_equals_the_official_network(shared: Path, entry: str, network: RAFT) -> None:
    stored = goldens.arrays(shared, entry)
    goldens.check(shared, entry, outputs(network, stored["image1"], stored["image2"]))


def test_state_dict_has_the_official_names_shapes_and_order(shared: Path, entry: str, network: RAFT) -> None:
    goldens.check_keys(shared, entry, network)


def test_size_and_family_are_read_from_the_state_dict(entry: str, network: RAFT) -> None:
    state = network.state_dict()
    found = detect(state) or detect_gma(state)
    assert found is not None
    assert type(found) is type(network)
    assert found.size == network.size
    found.load_state_dict(state, strict=True)
    assert (detect(state) is None) == (entry == "gma")
    assert detect({}) is None
    assert detect_gma({}) is None


def test_every_tensor_of_the_state_dict_matters(shared: Path, entry: str, network: RAFT) -> None:
    stored = goldens.arrays(shared, entry)
    dead = goldens.dead(network, lambda: outputs(network, stored["image1"], stored["image2"]).values())
    ablation = {"att.pos_emb.rel_height.weight", "att.pos_emb.rel_width.weight"}
    # Biases in front of instance norm are taken away by it: their gradients are rounding noise, or zero.
    cancelled = {name for name in dead if name.startswith("fnet.") and name.endswith(".bias")} - {"fnet.conv2.bias"}
    assert dead - cancelled == (ablation if entry == "gma" else set())


@torch.inference_mode()
def test_a_batch_gives_what_its_pairs_give_at_any_size_in_any_memory_layout(network: RAFT) -> None:
    image1, image2 = frames(2, 136, 192)
    start = torch.rand(2, 2, 17, 24, generator=torch.Generator().manual_seed(2))
    last = [image.contiguous(memory_format=torch.channels_last) for image in (image1, image2)]
    low, full = network(*last, iters=2, flow_init=start)
    assert full.shape == (2, 2, 136, 192)
    for i in range(2):
        alone = network(image1[i : i + 1], image2[i : i + 1], iters=2, flow_init=start[i : i + 1])
        torch.testing.assert_close(low[i : i + 1], alone[0], rtol=0, atol=2e-4)
        torch.testing.assert_close(full[i : i + 1], alone[1], rtol=0, atol=2e-3)


@torch.inference_mode()
def test_a_flow_to_start_from_is_where_the_first_windows_are_taken(network: RAFT) -> None:
    image1, image2 = frames(1, 128, 128)
    halfway, _ = network(image1, image2, iters=1)
    zero, _ = network(image1, image2, iters=1, flow_init=torch.zeros_like(halfway))
    torch.testing.assert_close(zero, halfway, rtol=0, atol=0)
    onward, _ = network(image1, image2, iters=1, flow_init=halfway)
    assert (onward - halfway).abs().max() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(136, 128), (131, 150), (20, 133)])
def test_any_size_is_estimated_within_repeated_borders(network: RAFT, height: int, width: int) -> None:
    image1, image2 = frames(1, height, width)
    to_height, to_width = max(128, -(-height // 8) * 8), max(128, -(-width // 8) * 8)
    top, left = (to_height - height) // 2, (to_width - width) // 2
    y = torch.arange(-top, to_height - top).clamp(0, height - 1)
    x = torch.arange(-left, to_width - left).clamp(0, width - 1)
    _, full = network(image1[:, :, y][..., x], image2[:, :, y][..., x], iters=1)
    expected = full[:, :, top : top + height, left : left + width]
    assert torch.equal(estimate(network, image1, image2, iters=1), expected)


def test_a_window_reads_the_correlation_at_its_positions() -> None:
    """Two maps without noise: the second is a ramp, so each sample tells the place that it was taken from."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")
    ones = torch.ones(1, 1, 16, 20)
    for place, axis in ((x, 0), (y, 1)):
        windows = CorrelationPyramid(ones, place[None, None], radius=1).windows(torch.full((1, 2, 16, 20), 8.25))
        expected = torch.tensor([-1.0, 0.0, 1.0]).repeat_interleave(3) if axis == 0 else torch.tensor([-1.0, 0, 1] * 3)
        torch.testing.assert_close(windows[0, :9, 0, 0], 8.25 + expected)


@pytest.mark.parametrize(("height", "width"), [(132, 128), (128, 200 + 4), (120, 256), (256, 64)])
def test_other_sides_are_refused_with_the_rule(network: RAFT, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of 8 and at least 128, got {width}x{height}"):
        network(*frames(1, height, width))


def test_calls_without_meaning_are_refused(network: RAFT) -> None:
    image1, image2 = frames(1, 128, 136)
    with pytest.raises(ValueError, match="of one size"):
        network(image1, image2[..., :128])
    with pytest.raises(ValueError, match="iters must be at least 1"):
        network(image1, image2, iters=0)
