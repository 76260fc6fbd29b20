"""X3D agrees with the official network, in all its sizes and for clips of any size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.networks.x3d import CLIPS, DEEP, SHALLOW, X3D, Clip, detect
from tests.actors.networks import goldens


@pytest.fixture(scope="module")
def network(shared: Path) -> X3D:
    return goldens.fill(shared, X3D, gain=1.4)


@pytest.fixture(scope="module")
def short(shared: Path) -> X3D:
    """With two blocks a stage, one of each kind, for what does not depend on their number."""
    return goldens.fill(shared, lambda: X3D(depths=(2, 2, 2, 2), classes=9), gain=1.4)


def clip(count: int, frames: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, frames, height, width, generator=torch.Generator().manual_seed(4))


def outputs(network: X3D, x: Tensor) -> dict[str, Tensor]:
    found = []
    for block in network.blocks:
        x = block(x)
        found.append(x)
    return {
        "stem": found[0][:, :8, ::4, ::4, ::4],
        "block2": found[2][:, :16, ::3, ::2, ::2],
        "block4": found[4][:, :32, ::3],
        "out": found[5],
    }


@torch.inference_mode()
@pytest.mark.parametrize("made_for", [None, CLIPS["s"]])
def test_outputs_equal_the_official_network(shared: Path, made_for: Clip | None) -> None:
    network = goldens.fill(shared, lambda: X3D(clip=made_for), gain=1.4)
    x = goldens.arrays(shared, "x3d_s")["x"]
    goldens.check(shared, "x3d_s", outputs(network, x) | {"out": network(x)})


@pytest.mark.parametrize(
    ("entry", "depths"), [("x3d_xs", SHALLOW), ("x3d_s", SHALLOW), ("x3d_m", SHALLOW), ("x3d_l", DEEP)]
)
@pytest.mark.usefixtures("meta")
def test_state_dict_has_the_official_names_shapes_and_order(shared: Path, entry: str, depths: tuple[int, ...]) -> None:
    network = X3D(depths)
    goldens.check_keys(shared, entry, network)
    found = detect(network.state_dict())
    assert found is not None
    assert (found.depths, found.classes) == (depths, 400)
    found.load_state_dict(network.state_dict(), strict=True)


def test_depths_and_classes_are_read_from_the_state_dict(short: X3D) -> None:
    state = short.state_dict()
    state["blocks.3.res_blocks.400000000.branch2.conv_a.weight"] = state["blocks.3.res_blocks.0.branch2.conv_a.weight"]
    found = detect(state)
    assert found is not None
    assert (found.depths, found.classes) == ((2, 2, 2, 2), 9)
    assert detect({}) is None
    assert detect({name: value for name, value in state.items() if not name.startswith("blocks.2")}) is None


def test_every_tensor_of_the_state_dict_matters(network: X3D) -> None:
    x = clip(1, 4, 64, 64)
    assert goldens.dead(network, lambda: [network(x)]) == set()


@torch.inference_mode()
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 32, 32), (4, 50, 71), (13, 40, 33)])
def test_a_batch_gives_what_its_clips_give_at_any_size_in_any_memory_layout(
    short: X3D, frames: int, height: int, width: int
) -> None:
    x = clip(2, frames, height, width)
    together = short(x.contiguous(memory_format=torch.channels_last_3d))
    assert together.shape == (2, 9)
    torch.testing.assert_close(together, torch.cat([short(x[:1]), short(x[1:])]), rtol=0, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize(("frames", "height", "width"), [(4, 64, 64), (4, 50, 64), (3, 64, 100), (5, 97, 129)])
def test_a_larger_clip_scores_as_the_mean_over_the_windows_of_the_head(
    short: X3D, frames: int, height: int, width: int
) -> None:
    small = X3D(short.depths, short.classes, Clip(frames=3, rate=1, side=64)).eval()
    small.load_state_dict(short.state_dict())
    x = clip(2, frames, height, width)
    features = x
    for block in short.blocks[:-1]:
        features = block(features)
    windows = features.unfold(2, 3, 1).unfold(3, 2, 1).unfold(4, 2, 1)  # [B, C, places in t, y, x, 3, 2, 2]
    places = windows.permute(2, 3, 4, 0, 1, 5, 6, 7).flatten(0, 2)
    expected = torch.stack([short.blocks[-1](place) for place in places]).mean(0)
    torch.testing.assert_close(small(x), expected, rtol=0, atol=1e-4)


def test_other_inputs_are_refused_with_the_rule(short: X3D) -> None:
    with pytest.raises(ValueError, match=r"\[B,3,T,H,W\], got \[1, 4, 13, 32, 32\]"):
        short(torch.zeros(1, 4, 13, 32, 32))
    made = X3D((1, 1, 1, 1), 2, CLIPS["s"])
    for frames, height, width in ((12, 160, 160), (13, 128, 160), (13, 160, 128)):
        with pytest.raises(ValueError, match=f"at least 13 frames and sides above 128, got {frames} of"):
            made(clip(1, frames, height, width))
    assert made(clip(1, 13, 129, 160)).shape == (1, 2)
