"""The budget: shares are never too small, fit wherever Ray puts them, and what does not fit is told with what would."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.budget import MARGIN, Budget, make_budget, share_of
from cluster.cards import Card
from cluster.config import PINS, PinSettings, frame_size
from cluster.packing import blocked_by_packing
from cluster.profiles import Figure, Figures, Profile, shipped_profile
from cluster.tables import budget_lines, budget_values

CARD = Card("Test Card", 10_000)
BIG = {"big": (100, 4100), "small": (50, 1050), "tiny": (10, 110)}


def figure(model: str, resident: float, peak: float, *, tile: int = 0, frame: str = "720p", micro: int = 1) -> Figure:
    width, height = frame_size(frame)
    return Figure(
        model=model,
        dtype="fp16",
        width=width,
        height=height,
        micro_batch=micro,
        tile=tile,
        resident_mib=resident,
        peak_mib=peak,
    )


def figures(*more: Figure) -> Figures:
    known = tuple(figure(model, *values) for model, values in BIG.items())
    return Figures(
        [Profile(device="Test Card", total_mib=10_000, context_mib=400, estimated=False, figures=known + more)]
    )


def pin(name: str, *models: str, **settings: object) -> PinSettings:
    return PinSettings.model_validate({"name": name, "models": models, "micro_batch": 1, **settings})


def budget(*pins: PinSettings, free: Sequence[float] = (1.0,), extra: Sequence[Figure] = ()) -> Budget:
    return make_budget(pins, CARD, figures(*extra), free=free)


def test_share_is_the_peak_with_its_margin_and_one_context_rounded_up_to_a_hundredth() -> None:
    (need,) = budget(pin("a", "big")).pins
    assert need.need_mib == pytest.approx(MARGIN * 4100 + 400)
    assert need.share == 0.50  # 4910 of 10,000
    assert budget(pin("a", "tiny")).pins[0].share == 0.06  # 521


def test_rounded_share_always_holds_what_it_is_for_and_hardly_more() -> None:
    chance = random.Random(7)
    for _ in range(2000):
        total, need = chance.randint(1000, 200_000), chance.uniform(1, 150_000)
        share = share_of(need, total)
        assert share * total >= need * (1 - 1e-7)
        assert (share - 0.01) * total < need
        assert share == round(share, 2)
    assert share_of(2900, 10_000) == 0.29  # 0.29 * 100 is 28.999… in binary


def test_pin_takes_its_largest_residents_and_the_largest_working_memory() -> None:
    (need,) = budget(pin("a", "big", "small", "tiny", resident=2)).pins
    assert (need.resident_mib, need.activation_mib) == (150, 4000)
    assert budget(pin("a", "big", "small", "tiny", resident=9)).pins[0].resident_mib == 160
    assert budget(pin("a", "big", "small", "tiny", resident=1)).pins[0].resident_mib == 100


def test_larger_frames_batches_and_numbers_take_more_and_smaller_ones_never_less_than_was_measured() -> None:
    known = figures()
    pixels = frame_size("720p")[0] * frame_size("720p")[1]

    def activation(pixels: int = pixels, micro: int = 1, dtype: str = "fp16") -> float:
        found = known.memory("big", dtype, pixels, micro, 0)
        assert found is not None
        return found.activation

    assert activation(micro=4) == 4 * activation()
    assert activation(pixels=2 * pixels) == 2 * activation()
    assert activation(dtype="fp32") == 2 * activation()
    assert activation(pixels=pixels // 4) == activation()


def test_untiled_figure_stands_for_tiles_that_nobody_measured_and_never_the_other_way_round() -> None:
    tiled = figure("big", 100, 600, tile=256)
    known, pixels = figures(tiled), frame_size("720p")[0] * frame_size("720p")[1]
    by_tile = {tile: known.memory("big", "fp16", pixels, 1, tile) for tile in (0, 128, 256, 512)}
    assert {tile: found and found.activation for tile, found in by_tile.items()} == {
        0: 4000,
        128: 500,
        256: 500,
        512: 4000,
    }
    assert Figures([Profile(device="x", total_mib=1, context_mib=1, estimated=False, figures=(tiled,))]).memory(
        "big", "fp16", pixels, 1, 0
    ) is None  # fmt: skip


def test_measurement_goes_before_the_estimate_and_says_so() -> None:
    estimate = Profile(device="x", total_mib=1, context_mib=1, estimated=True, figures=(figure("big", 1, 9001),))
    measured = Profile(device="x", total_mib=1, context_mib=1, estimated=False, figures=(figure("big", 1, 11),))
    pixels = frame_size("720p")[0] * frame_size("720p")[1]
    for profiles, activation, estimated in (((measured, estimate), 10, False), ((estimate,), 9000, True)):
        found = Figures(profiles).memory("big", "fp16", pixels, 1, 0)
        assert found is not None
        assert (found.activation, found.estimated) == (activation, estimated)


def test_shipped_pins_fit_the_reference_card_and_leave_some_of_it() -> None:
    shipped = shipped_profile()
    made = make_budget(PINS, Card(shipped.device, shipped.total_mib), Figures([shipped]))
    assert made.fits
    assert 0.3 < made.total < 0.9
    assert shipped.estimated
    assert "12" in f"{shipped.total_mib / 1000:.0f}"
    assert all(need.estimated for need in made.pins)


def test_what_does_not_fit_is_told_with_changes_that_make_it_fit() -> None:
    tiled = figure("big", 100, 600, tile=512)
    made = budget(pin("a", "big"), pin("b", "big"), pin("c", "small"), extra=[tiled])
    assert made.problems == ("the pins take 1.16 of 1 GPU",)
    fitting = {remedy.change: remedy.total for remedy in made.remedies if remedy.fits}
    assert fitting["`tile: 512` for pin a"] == pytest.approx(0.11 + 0.50 + 0.16)
    assert "give pin a all models, one process instead of 3" in fitting
    text = "\n".join(budget_lines(made))
    assert "does not fit: the pins take 1.16 of 1 GPU" in text
    assert "would fit with `tile: 512` for pin a" in text


@pytest.mark.parametrize(
    "pins",
    [
        [pin("a", "big"), pin("b", "big", "small"), pin("c", "tiny", "small")],
        [pin("a", "small", micro_batch=16)],
        [pin("a", "big"), pin("b", "small", "tiny", "big", resident=3, num_gpus=0.6)],
        [pin("a", "big", frame="1080p"), pin("b", "tiny")],
        [pin("a", "tiny", num_gpus=0.7), pin("b", "tiny", num_gpus=0.7)],
        [pin("a", "big", replicas=3)],
    ],
    ids=["tiles", "micro-batch", "resident", "frame", "explicit", "replicas"],
)
def test_remedies_are_changes_whose_sum_fits(pins: list[PinSettings]) -> None:
    extra = [figure("big", 100, 600, tile=512), figure("big", 100, 400, tile=256)]
    made = budget(*pins, extra=extra, free=(0.9,))
    assert made.problems
    assert made.remedies
    assert all(remedy.fits and remedy.total <= 0.9 for remedy in made.remedies)


def test_where_no_single_change_suffices_those_that_help_most_are_told() -> None:
    made = budget(pin("a", "big", micro_batch=16), pin("b", "big", micro_batch=16), free=(0.1,))
    assert made.remedies
    assert not any(remedy.fits for remedy in made.remedies)
    assert "would not yet fit with" in "\n".join(budget_lines(made))


def test_explicit_share_wins_and_is_checked() -> None:
    made = budget(pin("a", "big", num_gpus=0.3), extra=[figure("big", 100, 600, tile=256)])
    assert made.fits
    assert (made.pins[0].share, made.pins[0].needed) == (0.3, 0.5)
    (warning,) = made.warnings
    assert "num_gpus 0.3 is less than the 0.5 needed for frames of 720p" in warning
    refused = budget(pin("a", "big", num_gpus=0.09), extra=[figure("big", 100, 600, tile=256)])
    assert "its models need 1000 even frame by frame in tiles of 256" in refused.problems[0]
    assert budget(pin("a", "big", num_gpus=0.5)).warnings == ()
    assert budget(pin("a", "nobody-knows", num_gpus=0.5)).fits


def test_unknown_model_without_a_share_is_refused_with_the_command() -> None:
    made = budget(pin("a", "nobody-knows", "big"))
    assert "run `troupe profile nobody-knows`, or give num_gpus" in made.problems[0]


def test_pin_that_stays_on_the_cpu_takes_nothing() -> None:
    assert budget(pin("a", "big", num_gpus=0)).pins == ()


def test_pin_larger_than_the_card_is_refused_however_many_cards_there_are() -> None:
    made = budget(pin("a", "big", micro_batch=4), free=(1.0, 1.0, 1.0))
    assert made.problems == ("pin a needs 18110 MiB, and the card has 10000",)


def test_what_others_hold_is_taken_off() -> None:
    made = budget(pin("a", "big"), free=(0.4,))
    assert made.problems == ("the pins take 0.5 of 1 GPU, of which others hold 0.6",)
    text = "\n".join(budget_lines(made, ["actor Trainer (process 7) holds 0.6 GPU"]))
    assert "actor Trainer (process 7) holds 0.6 GPU" in text
    assert "/ others" in text


def test_replicas_for_each_gpu_follow_the_number_of_gpus() -> None:
    for count in (1, 2, 4):
        made = budget(pin("a", "big", replicas="per_gpu"), pin("b", "small", replicas="per_gpu"), free=(1.0,) * count)
        assert [need.replicas for need in made.pins] == [count, count]
        assert made.fits
        assert made.resolved("a").replicas == count


def brute_force_blocked(shares: Sequence[int], free: Sequence[int]) -> bool:
    """Whether some order of arrival and some choice of GPUs leaves a replica without one (hundredths)."""

    def stuck(left: tuple[int, ...], rooms: tuple[int, ...]) -> bool:
        for index, share in enumerate(left):
            places = [k for k, room in enumerate(rooms) if room >= share]
            if not places:
                return True
            rest = left[:index] + left[index + 1 :]
            if any(stuck(rest, (*rooms[:k], rooms[k] - share, *rooms[k + 1 :])) for k in places):
                return True
        return False

    return stuck(tuple(shares), tuple(free))


def test_worst_packing_is_found_exactly_when_there_is_one() -> None:
    """Ray may put two replicas of one pin on one GPU: checked against every order and every choice."""
    sizes = (10, 30, 40, 50, 60, 70)
    seen = {True: 0, False: 0}
    for (a, b), (count_a, count_b), rooms in itertools.product(
        itertools.combinations(sizes, 2), ((1, 1), (2, 1), (2, 2)), ((100,), (100, 100), (100, 60))
    ):
        shares = [a] * count_a + [b] * count_b
        if sum(shares) > sum(rooms):
            continue
        expected = brute_force_blocked(shares, rooms)
        found = blocked_by_packing({"a": (a / 100, count_a), "b": (b / 100, count_b)}, [room / 100 for room in rooms])
        assert (found is not None) is expected, (shares, rooms)
        seen[expected] += 1
    assert min(seen.values()) >= 10


def test_pins_that_bad_packing_would_lock_out_are_refused_though_their_sum_fits() -> None:
    pins = (pin("a", "big", num_gpus=0.6, replicas=2), pin("b", "small", num_gpus=0.3, replicas=2))
    made = budget(*pins, free=(1.0, 1.0))
    assert made.total == 1.8
    assert "Ray may place the others so that no GPU has the 0.6 left that pin a takes" in made.problems[0]


def test_budget_is_json() -> None:
    values = json.loads(json.dumps(budget_values(budget(pin("a", "big"), pin("b", "nobody-knows", num_gpus=0.1)))))
    assert values["fits"] is True
    assert [each["num_gpus"] for each in values["pins"]] == [0.5, 0.1]
    assert values["pins"][1]["models"] == {"nobody-knows": None}


def test_budget_needs_neither_ray_nor_torch() -> None:
    script = "import sys, cluster.tables, cluster.preflight; print(sorted({'ray', 'torch'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
