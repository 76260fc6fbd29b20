"""The governor: batch work waits past a limit, and goes on with a distance from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.config import Config, GovernorSettings, load_config
from cluster.governor import Governor, disk_governor, free_gib, heat_governor
from cluster.nvml import Card
from tests.cluster.test_nvml import Clock, Driver

SETTINGS = GovernorSettings(max_temperature_c=83, cool_by_c=5, min_free_gib=5, free_by_gib=1)


def answers(governor: Governor, count: int) -> list[str | None]:
    return [governor.check() for _ in range(count)]


def disk(*free: float | None) -> Governor:
    readings: Iterator[float | None] = iter(free)
    return disk_governor(SETTINGS, Path("/out"), lambda: next(readings))


def heat(*temperatures: float | Exception) -> Iterable[str | None]:
    driver, clock = Driver(), Clock()
    governor = heat_governor(SETTINGS, Card("0", driver, clock))
    for clock.now, temperature in enumerate(temperatures):
        driver.sensors["nvmlDeviceGetTemperature"] = temperature
        yield governor.check()


def test_batch_waits_above_the_temperature_and_goes_on_when_it_has_cooled() -> None:
    assert list(heat(82, 83, 84, 83, 79, 78, 83, 84)) == [
        None,
        None,
        "GPU 0 at 84 °C, over 83",
        "GPU 0 at 83 °C, goes on at 78",
        "GPU 0 at 79 °C, goes on at 78",
        None,
        None,
        "GPU 0 at 84 °C, over 83",
    ]


def test_batch_waits_below_the_free_room_and_goes_on_when_there_is_more() -> None:
    assert answers(disk(5, 3.14, 5, 5.9, 6, 5, 4.9), 7) == [
        None,
        "3.1 GiB free on /out, under 5",
        "5.0 GiB free on /out, goes on at 6",
        "5.9 GiB free on /out, goes on at 6",
        None,
        None,
        "4.9 GiB free on /out, under 5",
    ]


def test_sensor_that_says_nothing_holds_nothing() -> None:
    assert list(heat(90, RuntimeError("lost"), 82, 90))[1:3] == [None, None]
    assert answers(disk(1, None, 5.5), 3) == ["1.0 GiB free on /out, under 5", None, None]


def test_without_a_card_nothing_is_held() -> None:
    assert heat_governor(SETTINGS, Card("")).check() is None


def test_no_least_room_never_waits(tmp_path: Path) -> None:
    governor = disk_governor(GovernorSettings(min_free_gib=0, free_by_gib=0), tmp_path, lambda: 0.0)
    assert governor.check() is None


def test_room_is_the_folder_s_disk_s(tmp_path: Path) -> None:
    room = free_gib(tmp_path)
    assert room is not None
    assert room > 0
    assert free_gib(tmp_path / "not there") is None


def test_folder_with_braces_in_its_name_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "{0}"
    assert str(folder) in (disk_governor(SETTINGS, folder, lambda: 0.0).check() or "")


@pytest.mark.parametrize(
    "wrong", [{"max_temperature_c": 20}, {"max_temperature_c": 200}, {"cool_by_c": 0}, {"min_free_gib": -1}]
)
def test_limits_that_cannot_be_meant_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        GovernorSettings.model_validate(wrong)


def test_pins_of_a_file_get_its_limits_unless_they_have_their_own(tmp_path: Path) -> None:
    path = tmp_path / "ray-config.yaml"
    path.write_text(
        """
applications:
  - {name: a, import_path: "actors.pin:build", args: {name: a, models: [x]}}
  - {name: b, import_path: "actors.pin:build", args: {name: b, models: [y], governor: {max_temperature_c: 70}}}
troupe: {governor: {max_temperature_c: 75}}
"""
    )
    config: Config = load_config(path)
    assert [pin.governor.max_temperature_c for pin in config.pins] == [75, 70]
    assert config.troupe.governor.max_temperature_c == 75
