"""Profiles: kept whole under the card's name, a new measurement replaces the old one of the same setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.catalogue import CARDS, card
from actors.estimate import LiveBytes, estimate
from bench.estimate import FRAMES, TILES, as_text, figures, write_weights
from cluster.errors import UsageError
from cluster.profiles import Profile, figures_for, profile_path, read_profile, shipped_profile, write_profile
from tests.cluster.test_budget import figure

EMPTY = Profile(device="NVIDIA GeForce RTX 3060", total_mib=12036, context_mib=380, estimated=False)


def test_profile_is_kept_under_the_card_s_name_and_read_again(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    assert read_profile(environ, EMPTY.device) is None
    path = write_profile(environ, EMPTY.with_figures([figure("a", 1, 2)]))
    assert path == tmp_path / "troupe" / "profiles" / "nvidia-geforce-rtx-3060.json"
    again = read_profile(environ, EMPTY.device)
    assert again is not None
    write_profile(environ, again.with_figures([figure("a", 1, 3), figure("a", 1, 9, tile=256)]))
    kept = read_profile(environ, EMPTY.device)
    assert kept is not None
    assert [(each.tile, each.peak_mib) for each in kept.figures] == [(0, 3), (256, 9)]
    assert figures_for(EMPTY.device, environ).context_mib == 380
    assert list(path.parent.iterdir()) == [path]


def test_damaged_profile_is_an_error_with_its_path(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    path = profile_path(environ, "x")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(UsageError, match=str(path)):
        read_profile(environ, "x")


def test_shipped_table_knows_every_model_of_a_pin_and_says_that_it_is_estimated() -> None:
    shipped = shipped_profile()
    assert shipped.estimated
    assert "troupe profile" in shipped.note
    assert {each.model for each in shipped.figures} == {entry.name for entry in CARDS.values() if entry.resident}
    for entry in CARDS.values():
        if entry.resident and entry.name != "selfie":
            settings = {(each.width, each.tile) for each in shipped.figures if each.model == entry.name}
            assert len(settings) == len(FRAMES[entry.family]) * len(TILES[entry.family])


@pytest.mark.parametrize("model", ["realesr-animevideov3", "rvm-mobilenetv3"])
def test_shipped_table_is_what_the_command_estimates(model: str) -> None:
    entry = card(model)
    fresh = figures(model, FRAMES[entry.family][:1], TILES[entry.family][:2])
    shipped = {each.setting: each for each in shipped_profile().figures}
    for each in fresh:
        known = shipped[each.setting]
        assert each.resident_mib == known.resident_mib
        # torch may change what an operation makes of its inputs on the way.
        assert each.peak_mib == pytest.approx(known.peak_mib, rel=0.05)
    assert Profile.model_validate_json(as_text(EMPTY.with_figures(fresh))).figures == tuple(
        sorted(fresh, key=lambda each: each.setting)
    )


def test_estimate_counts_what_lives_at_once() -> None:
    import torch

    live = LiveBytes()
    with live, torch.inference_mode():
        x = torch.zeros(1024, 256, device="meta")  # 1 MiB
        y = x + 1
        assert live.now == 2 * 2**20
        del x
        z = y.cpu()
        assert live.now == 2**20
        assert (z.device.type, z.shape) == ("cpu", y.shape)
        del y
    assert (live.now, live.peak) == (0, 2 * 2**20)


def test_estimate_grows_with_the_micro_batch_and_shrinks_with_tiles(tmp_path: Path) -> None:
    weights = write_weights(tmp_path, "realesr-animevideov3")
    entry = card("realesr-animevideov3")
    one, four, tiled = (
        estimate(entry, weights, (480, 320), dtype="fp16", micro_batch=micro, tile=tile)
        for micro, tile in ((1, 0), (4, 0), (1, 128))
    )
    assert four.activation_mib == pytest.approx(4 * one.activation_mib, rel=0.02)
    assert tiled.activation_mib < 0.6 * one.activation_mib
    # 621,424 parameters of two bytes
    assert one.resident_mib == pytest.approx(621_424 * 2 / 2**20, abs=0.1)
