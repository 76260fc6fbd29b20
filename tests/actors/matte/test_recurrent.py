"""RVM as a model: any chunking gives the same frames, state starts afresh where it must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.frames import Carry, FrameBatch
from actors.matte import CARDS
from actors.matte.recurrent import RecurrentMatte
from actors.model import Setup
from actors.networks.rvm import MattingNetwork
from actors.networks.rvm.matting import Variant
from cluster.errors import UsageError, WeightsError

FRAMES = 11


def network(variant: Variant) -> MattingNetwork:
    """Random weights whose outputs react to frame and state instead of saturating."""
    torch.manual_seed(3)
    net = MattingNetwork(variant)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    torch.nn.init.constant_(net.project_mat.conv.bias[3:], 0.5)
    return net


@pytest.fixture(scope="module", params=["mobilenetv3", "resnet50"])
def model(request: pytest.FixtureRequest) -> RecurrentMatte:
    return RecurrentMatte(network(request.param), "cpu", torch.float32, 8)


def clip(frames: int = FRAMES, width: int = 80, height: int = 56, cuts: tuple[int, ...] = ()) -> FrameBatch:
    rng = np.random.default_rng(5)
    rgb = rng.integers(0, 256, (frames, height, width, 3), np.uint8)
    rgb.flags.writeable = False  # as shared memory gives them
    cut = np.zeros(frames, np.bool_)
    cut[list(cuts)] = True
    return FrameBatch(rgb, np.arange(frames, dtype=np.int64), cut)


def part(batch: FrameBatch, first: int, last: int) -> FrameBatch:
    return FrameBatch(batch.rgb[first:last], batch.pts[first:last], batch.cut[first:last])


def in_chunks(
    model: RecurrentMatte, batch: FrameBatch, size: int, params: dict[str, Any]
) -> tuple[bytes, bytes, Carry]:
    carry: Carry = {}
    rgb, alpha = b"", b""
    for first in range(0, len(batch), size):
        done, carry = model(part(batch, first, first + size), carry, params)
        assert done.alpha is not None
        rgb += done.rgb.tobytes()
        alpha += done.alpha.tobytes()
    return rgb, alpha, carry


@pytest.mark.parametrize("params", [{}, {"long_side": 48}], ids=["full-size", "refined"])
def test_any_chunking_gives_the_same_frames_and_carry(model: RecurrentMatte, params: dict[str, Any]) -> None:
    batch = clip(cuts=(0, 6))
    whole = in_chunks(model, batch, FRAMES, params)
    for size in (1, 3, 8):
        rgb, alpha, carry = in_chunks(model, batch, size, params)
        assert rgb == whole[0] and alpha == whole[1]
        assert carry.keys() == whole[2].keys()
        for name, array in carry.items():
            np.testing.assert_array_equal(array, whole[2][name], err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_survive_the_carry_without_loss(dtype: torch.dtype) -> None:
    model = RecurrentMatte(network("mobilenetv3"), "cpu", dtype, 1)
    batch = clip(3)
    rgb, alpha, carry = in_chunks(model, batch, 3, {})
    assert (rgb, alpha) == in_chunks(model, batch, 1, {})[:2]
    assert carry["r1"].dtype == np.float32


def test_carry_changes_what_follows(model: RecurrentMatte) -> None:
    batch = clip(4)
    _, carry = model(part(batch, 0, 3), {}, {})
    carried, _ = model(part(batch, 3, 4), carry, {})
    fresh, _ = model(part(batch, 3, 4), {}, {})
    assert not np.array_equal(carried.rgb, fresh.rgb)


def test_state_resets_at_a_cut_inside_and_at_the_start_of_a_batch(model: RecurrentMatte) -> None:
    batch = clip(6, cuts=(3,))
    fresh, fresh_carry = model(part(batch, 3, 6), {}, {})
    inside, inside_carry = model(batch, {}, {})
    _, carry = model(part(batch, 0, 3), {}, {})
    start, _ = model(part(batch, 3, 6), carry, {})
    np.testing.assert_array_equal(inside.rgb[3:], fresh.rgb)
    np.testing.assert_array_equal(start.rgb, fresh.rgb)
    np.testing.assert_array_equal(inside_carry["r4"], fresh_carry["r4"])


@pytest.mark.parametrize(
    ("width", "height", "params"),
    [(72, 56, {}), (81, 56, {}), (80, 56, {"downsample_ratio": 0.5})],
    ids=["another size", "another size, same states", "another ratio"],
)
def test_state_of_another_geometry_is_not_used(
    model: RecurrentMatte, width: int, height: int, params: dict[str, Any]
) -> None:
    _, carry = model(clip(3), {}, {})
    other = clip(2, width, height)
    after, _ = model(other, carry, params)
    fresh, _ = model(other, {}, params)
    np.testing.assert_array_equal(after.rgb, fresh.rgb)
    np.testing.assert_array_equal(after.alpha, fresh.alpha)


def test_times_cuts_and_planes_pass_through() -> None:
    model = RecurrentMatte(network("mobilenetv3"), "cpu", torch.float32, 1)
    done, carry = model(clip(2, cuts=(1,)), {}, {})
    assert done.alpha is not None and done.alpha.shape == (2, 56, 80) and done.alpha.dtype == np.uint8
    assert done.rgb.shape == (2, 56, 80, 3) and done.rgb.dtype == np.uint8
    assert done.pts.tolist() == [0, 1] and done.cut.tolist() == [False, True]
    assert {name: array.dtype for name, array in carry.items() if name != "geometry"} == dict.fromkeys(
        ("r1", "r2", "r3", "r4"), np.dtype(np.float32)
    )


def test_the_network_sees_at_most_the_long_side() -> None:
    model = RecurrentMatte(network("mobilenetv3"), "cpu", torch.float32, 1)
    _, carry = model(clip(1, 160, 96), {}, {"long_side": 80})
    assert carry["r1"].shape[2:] == (24, 40)
    _, carry = model(clip(1, 160, 96), {}, {"long_side": 80, "downsample_ratio": 0.25})
    assert carry["r1"].shape[2:] == (12, 20)
    _, carry = model(clip(1, 160, 96), {}, {})
    assert carry["r1"].shape[2:] == (48, 80)


@pytest.mark.parametrize("params", [{"downsample_ratio": 0}, {"downsample_ratio": 1.5}, {"long_side": 3}])
def test_impossible_params_are_refused(params: dict[str, Any]) -> None:
    model = RecurrentMatte(network("mobilenetv3"), "cpu", torch.float32, 1)
    with pytest.raises(UsageError):
        model(clip(1), {}, params)


def test_cards_load_their_own_variant_only(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(network("mobilenetv3").state_dict(), path)
    cards = {card.name: card for card in CARDS}
    done, _ = cards["rvm-mobilenetv3"].load(Setup(weights=(path,)))(clip(1), {}, {})
    assert done.alpha is not None
    with pytest.raises(WeightsError, match="RVM mobilenetv3"):
        cards["rvm-resnet50"].load(Setup(weights=(path,)))
