"""Tiles: compact networks give exactly the whole frame's pixels, the others blend without a seam."""

from __future__ import annotations

import itertools
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.networks.rrdb import RRDBNet
from actors.networks.srvgg import SRVGGNetCompact
from actors.upscale.tiles import BLEND_RAMP, cut, run_tiled

Network = TypeVar("Network", bound=nn.Module)


def filled(network: Network, gain: float = 1.0) -> Network:
    torch.manual_seed(7)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=gain * float(parameter[0].numel()) ** -0.5)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def noise(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3)).contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize("convs", [16, 32])
@pytest.mark.parametrize(("height", "width"), [(73, 99), (41, 40), (33, 150)])
def test_compact_networks_give_the_same_bits_in_any_tiles(convs: int, height: int, width: int) -> None:
    network = filled(SRVGGNetCompact(convs=convs))
    x = noise(height, width)
    with torch.inference_mode():
        whole = network(x)
        for tile in (37, 64):
            tiled = run_tiled(
                network, x, tile=tile, scale=4, exact_margin=network.receptive_field, multiple_of=network.multiple_of
            )
            assert torch.equal(tiled, whole), tile


def test_a_margin_one_pixel_short_shows() -> None:
    network = filled(SRVGGNetCompact(features=8, convs=2, scale=2), gain=3.0)
    x = noise(40, 40)
    with torch.inference_mode():
        short = run_tiled(network, x, tile=16, scale=2, exact_margin=network.receptive_field - 1, multiple_of=1)
        assert not torch.equal(short, network(x))


@pytest.mark.parametrize("scale", [4, 2])
def test_rrdb_tiles_are_close_to_the_whole_frame_and_have_no_seam(scale: int) -> None:
    network = filled(RRDBNet(features=16, growth=8, blocks=4, scale=scale))
    x = noise(70, 134)
    with torch.inference_mode():
        whole = network(x)
        tiled = run_tiled(network, x, tile=48, scale=scale, exact_margin=None, multiple_of=network.multiple_of)
    assert tiled.shape == whole.shape
    error = (tiled - whole).abs()
    assert error.max() < 0.02 * whole.std()
    jumps, plain = ((y[..., 1:] - y[..., :-1]).abs().amax((0, 1, 2)) for y in (tiled, whole))
    assert (jumps - plain).max() < 0.02 * whole.std()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 17), (50, 33), (64, 128), (100, 35)])
@pytest.mark.parametrize("tile", [1, 16, 24, 63])
def test_blending_neither_loses_nor_adds_light(height: int, width: int, tile: int) -> None:
    def enlarge(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")

    x = noise(height, width)
    tiled = run_tiled(enlarge, x, tile=tile, scale=2, exact_margin=None, multiple_of=1)
    assert (tiled - enlarge(x)).abs().max() < 1e-6


def test_tiles_that_disagree_meet_in_a_linear_ramp() -> None:
    calls = itertools.count()

    def level(x: Tensor) -> Tensor:
        return torch.full((1, 3, 2 * x.shape[2], 2 * x.shape[3]), float(next(calls)))

    line = run_tiled(level, noise(16, 96), tile=48, scale=2, exact_margin=None, multiple_of=1)[0, 0, 0]
    assert next(calls) == 2
    assert line[0] == 0
    assert line[-1] == 1
    steps = line[1:] - line[:-1]
    assert steps.min() >= 0
    assert steps.max() <= 1 / (2 * BLEND_RAMP) + 1e-6


@pytest.mark.parametrize("multiple_of", [1, 2, 4])
@pytest.mark.parametrize(("margin", "ramp"), [(18, 0), (34, 0), (16, 16)])
def test_cuts_cover_every_pixel_and_bound_what_the_network_sees(multiple_of: int, margin: int, ramp: int) -> None:
    for length in range(multiple_of, 300, multiple_of):
        for tile in (1, 7, 16, 64, 100, 400):
            spans = cut(length, tile, margin, ramp, multiple_of)
            covered = [0] * length
            for span in spans:
                assert 0 <= span.outer_start <= span.start < span.stop <= span.outer_stop <= length
                assert span.outer_start % multiple_of == 0
                assert span.outer_stop % multiple_of == 0
                assert span.stop - span.start <= max(tile + multiple_of - 1, ramp) + ramp
                assert span.outer_start == max(0, span.start - -(-margin // multiple_of) * multiple_of)
                for i in range(span.start, span.stop):
                    covered[i] += 1
            assert min(covered) == 1
            assert max(covered) <= (2 if ramp else 1)
            assert tile < length or len(spans) == 1
