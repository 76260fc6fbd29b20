"""The upscaler: any chunking and tiling gives the same frames, at the size asked for, from untouched inputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actors.frames import FrameBatch
from actors.model import Dtype, Setup
from actors.networks.rrdb import RRDBNet
from actors.networks.rvm import MattingNetwork
from actors.networks.srvgg import SRVGGNetCompact
from actors.upscale import CARDS
from actors.upscale.upscaler import Upscaler
from cluster.errors import UsageError, WeightsError

BY_NAME = {card.name: card for card in CARDS}


def filled(network: SRVGGNetCompact | RRDBNet) -> SRVGGNetCompact | RRDBNet:
    torch.manual_seed(5)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=float(parameter[0].numel()) ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.0, 0.2)
    return network.eval().requires_grad_(False)


def enlarger(scale: int = 4) -> SRVGGNetCompact:
    """A network whose weights are all zero: it repeats every pixel scale x scale times."""
    network = SRVGGNetCompact(features=4, convs=1, scale=scale).eval().requires_grad_(False)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    return network


def frames(count: int, height: int, width: int, *, alpha: bool = False) -> FrameBatch:
    """Noise in read-only arrays, as a pin receives them."""
    rng = np.random.default_rng(2)
    rgb = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    matte = rng.integers(0, 256, (count, height, width), dtype=np.uint8)
    for array in (rgb, matte):
        array.flags.writeable = False
    return FrameBatch(rgb=rgb, pts=np.arange(count) * 512, cut=np.zeros(count, bool), alpha=matte if alpha else None)


def part(batch: FrameBatch, start: int, stop: int) -> FrameBatch:
    alpha = None if batch.alpha is None else batch.alpha[start:stop]
    return FrameBatch(batch.rgb[start:stop], batch.pts[start:stop], batch.cut[start:stop], alpha)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_any_chunking_gives_the_same_frames(chunk: int) -> None:
    model, batch = Upscaler(filled(SRVGGNetCompact(convs=16)), micro_batch=8), frames(5, 31, 45, alpha=True)
    params = {"size": [120, 82]}
    whole, _ = model(batch, {}, params)
    pieces = [model(part(batch, i, i + chunk), {}, params)[0] for i in range(0, 5, chunk)]
    assert np.array_equal(whole.rgb, np.concatenate([piece.rgb for piece in pieces]))
    assert whole.alpha is not None
    assert np.array_equal(whole.alpha, np.concatenate([piece.alpha for piece in pieces if piece.alpha is not None]))


def test_tile_can_change_between_calls_and_changes_nothing() -> None:
    model, batch = Upscaler(filled(SRVGGNetCompact(convs=16))), frames(1, 91, 67)
    whole, _ = model(batch, {}, {"size": [200, 270]})
    model.tile = 32
    tiled, _ = model(batch, {}, {"size": [200, 270]})
    assert np.array_equal(whole.rgb, tiled.rgb)


def test_tiles_bound_what_the_network_sees_and_small_frames_are_left_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    network = filled(SRVGGNetCompact(features=4, convs=1, scale=2))
    seen = record_inputs(network, monkeypatch)
    model = Upscaler(network, tile=32)
    model(frames(1, 32, 20), {}, {})
    assert seen == [(32, 20)]
    seen.clear()
    model(frames(1, 33, 100), {}, {})
    assert len(seen) == 2 * 4
    assert max(max(shape) for shape in seen) <= 32 + 2 * network.receptive_field


def record_inputs(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    forward = network.forward

    def recorded(x: Tensor) -> Any:
        seen.append(tuple(x.shape[2:]))
        return forward(x)

    monkeypatch.setattr(network, "forward", recorded)
    return seen


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_every_level_comes_back_as_it_went_in(dtype: Dtype) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    batch = FrameBatch(np.stack([levels] * 3, -1), np.zeros(1, np.int64), np.zeros(1, bool))
    out, _ = Upscaler(enlarger(), dtype=dtype)(batch, {}, {})
    assert np.array_equal(out.rgb, batch.rgb.repeat(4, 1).repeat(4, 2))


@pytest.mark.parametrize(("dtype", "worst"), [("fp16", 2), ("bf16", 12)])
def test_half_precision_stays_near_single(dtype: Dtype, worst: int) -> None:
    batch = frames(1, 24, 40)
    params = {"size": [96, 64], "max_input": 20}
    single, _ = Upscaler(filled(SRVGGNetCompact(convs=8)))(batch, {}, params)
    half, _ = Upscaler(filled(SRVGGNetCompact(convs=8)), dtype=dtype)(batch, {}, params)
    difference = np.abs(single.rgb.astype(int) - half.rgb)
    assert difference.max() <= worst
    assert difference.mean() < worst / 6


@pytest.mark.parametrize("size", [(84, 60), (42, 30), (30, 22), (200, 144), (61, 33)])
def test_frames_come_out_at_the_size_asked_for(size: tuple[int, int]) -> None:
    batch = frames(2, 15, 21, alpha=True)
    out, carry = Upscaler(enlarger())(batch, {}, {"size": list(size)})
    assert out.size == size
    assert out.alpha is not None
    assert out.alpha.shape == (2, size[1], size[0])
    assert out.rgb.dtype == out.alpha.dtype == np.uint8
    assert np.array_equal(out.pts, batch.pts)
    assert carry == {}


def test_without_a_size_the_network_decides() -> None:
    assert Upscaler(enlarger(scale=2))(frames(1, 15, 21), {}, {})[0].size == (42, 30)
    assert Upscaler(enlarger(scale=2))(frames(1, 15, 21), {}, {"size": None, "max_input": None})[0].size == (42, 30)
    assert Upscaler(enlarger(scale=4))(frames(0, 15, 21), {}, {})[0].rgb.shape == (0, 60, 84, 3)


def test_max_input_reduces_what_the_network_sees_but_not_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    network = enlarger()
    seen = record_inputs(network, monkeypatch)
    out, _ = Upscaler(network)(frames(1, 30, 40), {}, {"size": [160, 120], "max_input": 15})
    assert seen == [(15, 20)]
    assert out.size == (160, 120)
    assert Upscaler(network)(frames(1, 30, 40), {}, {"max_input": 60})[0].size == (160, 120)


@pytest.mark.parametrize("size", [[6, 4], [33, 21], [48, 32], [100, 70]])
@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_flat_frame_stays_flat_at_any_size(size: list[int], level: int) -> None:
    flat = np.full((1, 8, 12, 3), level, np.uint8)
    batch = FrameBatch(flat, np.zeros(1, np.int64), np.zeros(1, bool), flat[..., 0])
    out, _ = Upscaler(enlarger())(batch, {}, {"size": size})
    assert (out.rgb == level).all()
    assert out.alpha is not None
    assert (out.alpha == level).all()


def test_reducing_averages_instead_of_picking_pixels() -> None:
    stripes = np.zeros((1, 16, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    batch = FrameBatch(stripes, np.zeros(1, np.int64), np.zeros(1, bool))
    out, _ = Upscaler(enlarger())(batch, {}, {"size": [14, 4]})
    assert np.abs(out.rgb[:, :, 2:-2].astype(int) - 127).max() <= 12


def test_an_edge_in_alpha_does_not_ring() -> None:
    alpha = np.full((1, 16, 16), 60, np.uint8)
    alpha[:, :, 8:] = 200
    batch = FrameBatch(frames(1, 16, 16).rgb, np.zeros(1, np.int64), np.zeros(1, bool), alpha)
    out, _ = Upscaler(enlarger())(batch, {}, {})
    assert out.alpha is not None
    row = out.alpha[0, 30].astype(int)
    assert (row.min(), row.max()) == (60, 200)
    assert (np.diff(row) >= 0).all()


@pytest.mark.parametrize(("height", "width"), [(15, 21), (16, 21), (15, 22), (1, 1)])
@pytest.mark.parametrize("tile", [0, 8])
def test_odd_frames_go_through_networks_that_need_even_ones(height: int, width: int, tile: int) -> None:
    network = filled(RRDBNet(features=8, growth=4, blocks=1, scale=2))
    batch = frames(1, height, width)
    out, _ = Upscaler(network, tile=tile)(batch, {}, {})
    assert out.size == (2 * width, 2 * height)
    even = np.pad(batch.rgb, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    padded, _ = Upscaler(network, tile=tile)(FrameBatch(even, batch.pts, batch.cut), {}, {})
    assert np.array_equal(out.rgb, padded.rgb[:, : 2 * height, : 2 * width])


@pytest.mark.filterwarnings("error")
def test_read_only_inputs_are_neither_written_nor_complained_about() -> None:
    batch = frames(2, 12, 16, alpha=True)
    assert batch.alpha is not None
    before = batch.rgb.copy(), batch.alpha.copy()
    Upscaler(filled(SRVGGNetCompact(features=8, convs=1)))(batch, {}, {"size": [20, 16]})
    assert np.array_equal(batch.rgb, before[0])
    assert np.array_equal(batch.alpha, before[1])


@pytest.mark.parametrize(
    "params",
    [
        {"size": [0, 10]},
        {"size": [10]},
        {"size": "10x10"},
        {"size": [10.0, 10]},
        {"size": [True, 10]},
        {"max_input": 0},
        {"max_input": "480"},
        {"scale": 2},
    ],
    ids=str,
)
def test_bad_parameters_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="upscale"):
        Upscaler(enlarger())(frames(1, 8, 8), {}, params)


def save(path: Path, network: nn.Module) -> Path:
    torch.save({"params": network.state_dict()}, path)
    return path


def test_every_card_loads_its_checkpoint_and_enlarges(tmp_path: Path) -> None:
    compact = save(tmp_path / "compact.pth", filled(SRVGGNetCompact(features=8, convs=1)))
    dense4 = save(tmp_path / "x4.pth", filled(RRDBNet(features=8, growth=4, blocks=1, scale=4)))
    dense2 = save(tmp_path / "x2.pth", filled(RRDBNet(features=8, growth=4, blocks=1, scale=2)))
    files = {
        "realesr-animevideov3": (compact,),
        "realesr-general-x4v3": (compact, compact),
        "realesrgan-x4plus": (dense4,),
        "realesrgan-x2plus": (dense2,),
        "realesrgan-x4plus-anime-6b": (dense4,),
    }
    assert files.keys() == BY_NAME.keys()
    for name, weights in files.items():
        card = BY_NAME[name]
        assert (card.family, card.resident, len(card.weights)) == ("upscale", True, len(weights))
        out, _ = card.load(Setup(weights=weights))(frames(1, 9, 13), {}, {})
        assert out.size == (13 * card.scale, 9 * card.scale), name


def test_denoise_moves_from_the_weak_to_the_strong_checkpoint(tmp_path: Path) -> None:
    strong, weak = enlarger(), enlarger()
    assert isinstance(strong.body[-1], nn.Conv2d)
    nn.init.constant_(strong.body[-1].bias, 100 / 255)  # adds 100 levels; weak adds nothing
    weights = (save(tmp_path / "strong.pth", strong), save(tmp_path / "weak.pth", weak))
    black = FrameBatch(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64), np.zeros(1, bool))
    options: list[tuple[dict[str, float], int]] = [
        ({}, 50),
        ({"denoise": 0.25}, 25),
        ({"denoise": 1}, 100),
        ({"denoise": 0}, 0),
    ]
    for option, level in options:
        model = BY_NAME["realesr-general-x4v3"].load(Setup(weights=weights, options=option))
        assert (model(black, {}, {})[0].rgb == level).all(), option


@pytest.mark.parametrize("options", [{"denoise": 1.5}, {"denoise": "0.5"}, {"denoise": True}, {"noise": 1}], ids=str)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    path = save(tmp_path / "net.pth", enlarger())
    with pytest.raises(UsageError):
        BY_NAME["realesr-general-x4v3"].load(Setup(weights=(path, path), options=options))
    with pytest.raises(UsageError, match="this model has none"):
        BY_NAME["realesr-animevideov3"].load(Setup(weights=(path,), options=options))


def test_a_matting_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "rvm.pth", MattingNetwork("mobilenetv3"))
    with pytest.raises(WeightsError, match=r"rvm\.pth: holds a network \(rvm\) that does not enlarge"):
        BY_NAME["realesr-animevideov3"].load(Setup(weights=(path,)))


def test_a_checkpoint_of_another_scale_than_the_card_says_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x2.pth", enlarger(scale=2))
    with pytest.raises(WeightsError, match=r"x2\.pth: enlarges by 2, not by 4"):
        BY_NAME["realesr-animevideov3"].load(Setup(weights=(path,)))


def test_real_weights_enlarge_a_drawing_better_than_repeating_pixels(shared: Path) -> None:
    y, x = np.mgrid[0:128, 0:160]
    sharp = np.where((x - 80) ** 2 + (y - 64) ** 2 < 48**2, 210, 40).astype(np.uint8)
    small = sharp.reshape(32, 4, 40, 4).mean((1, 3)).round().astype(np.uint8)
    batch = FrameBatch(np.stack([small] * 3, -1)[None], np.zeros(1, np.int64), np.zeros(1, bool))
    model = BY_NAME["realesr-animevideov3"].load(Setup(weights=(shared / "weights" / "realesr-animevideov3.pth",)))
    out = model(batch, {}, {})[0].rgb[0, ..., 1].astype(int)
    repeated = small.repeat(4, 0).repeat(4, 1).astype(int)
    assert np.square(out - sharp).mean() < 0.5 * np.square(repeated - sharp).mean()


def test_listing_cards_and_computing_sizes_do_not_import_torch() -> None:
    code = "import sys, actors.upscale, actors.upscale.sizes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0
