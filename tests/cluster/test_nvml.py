"""A card's sensors: whatever the driver does, reading them harms nobody."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import nvml
from cluster.nvml import Card, Sensors, visible_card

UUID = "GPU-11111111-2222-3333-4444-555555555555"


class Driver:
    """NVIDIA's library with one card, whose sensors can be made to fail."""

    NVML_TEMPERATURE_GPU = 0

    def __init__(self, **sensors: Any) -> None:
        self.sensors: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlDeviceGetIndex": 1,
            "nvmlDeviceGetUUID": UUID,
            "nvmlDeviceGetName": "NVIDIA GeForce RTX 3060",
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=87),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3 << 30, total=12 << 30),
            "nvmlDeviceGetPowerUsage": 170_500,
            "nvmlDeviceGetTemperature": 71,
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=7), SimpleNamespace(pid=8)],
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": "whole",
            **sensors,
        }
        self.asked: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def answer(*arguments: Any) -> Any:
            self.asked.append((name, *arguments))
            value = self.sensors[name]
            if isinstance(value, Exception):
                raise value
            return value() if callable(value) else value

        return answer


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("environment", "card"),
    [
        ({}, "0"),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, "2"),
        ({"CUDA_VISIBLE_DEVICES": f" {UUID}"}, UUID),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ""),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ""),
    ],
)
def test_card_is_the_one_that_ray_gave_the_process(environment: dict[str, str], card: str) -> None:
    assert visible_card(environment) == card


def test_sensors_are_told_in_plain_units() -> None:
    assert Card("1", Driver()).read() == Sensors(
        index=1,
        uuid=UUID,
        name="NVIDIA GeForce RTX 3060",
        utilisation=0.87,
        temperature=71,
        power=170.5,
        memory_used=3 << 30,
        memory_total=12 << 30,
        processes=(7, 8),
    )


@pytest.mark.parametrize(
    ("which", "question"),
    [
        ("1", ("nvmlDeviceGetHandleByIndex", 1)),
        (UUID, ("nvmlDeviceGetHandleByUUID", UUID)),
        (UUID.removeprefix("GPU-"), ("nvmlDeviceGetHandleByUUID", UUID)),
        ("MIG-1", ("nvmlDeviceGetHandleByUUID", "MIG-1")),
    ],
)
def test_card_is_found_by_index_or_uuid(which: str, question: tuple[Any, ...]) -> None:
    driver = Driver()
    assert Card(which, driver).read() is not None
    assert question in driver.asked


def test_heat_of_a_mig_slice_is_its_card_s() -> None:
    driver = Driver()
    assert Card("MIG-1", driver).temperature() == 71
    assert ("nvmlDeviceGetTemperature", "whole", 0) in driver.asked
    assert ("nvmlDeviceGetMemoryInfo", "handle") in driver.asked


def test_sensor_that_a_card_lacks_is_none_and_the_others_are_told() -> None:
    found = Card("0", Driver(nvmlDeviceGetPowerUsage=RuntimeError("Not Supported"))).read()
    assert found is not None
    assert (found.power, found.temperature) == (None, 71)


def test_without_a_driver_nothing_is_read_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    driver, clock = Driver(nvmlInit=RuntimeError("NVML Shared Library Not Found")), Clock()
    card = Card("0", driver, clock)
    with caplog.at_level(logging.INFO, "cluster.nvml"):
        for clock.now in range(5):
            assert card.read() is None
            assert card.temperature() is None
    assert card.absence == "GPU 0 cannot be asked (NVML Shared Library Not Found)"
    assert len(caplog.records) == 1
    assert driver.asked == [("nvmlInit",)]


def test_no_visible_card_is_said_once_and_asks_nobody(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver()
    with caplog.at_level(logging.INFO, "cluster.nvml"):
        card = Card("", driver)
        assert card.read() is None
    assert card.absence == "no GPU is visible here"
    assert len(caplog.records) == 1
    assert driver.asked == []


def test_card_that_is_lost_for_a_while_is_read_again(caplog: pytest.LogCaptureFixture) -> None:
    driver, clock = Driver(), Clock()
    card = Card("0", driver, clock)
    answers = []
    with caplog.at_level(logging.INFO, "cluster.nvml"):
        for clock.now, handle in enumerate(("handle", RuntimeError("GPU is lost"), RuntimeError("GPU is lost"), "h")):
            driver.sensors["nvmlDeviceGetHandleByIndex"] = handle
            answers.append(card.temperature())
    assert answers == [71, None, None, 71]
    assert [record.getMessage() for record in caplog.records] == [
        "GPU 0 cannot be asked (GPU is lost): no temperature limit, no GPU metrics",
        "GPU 0 answers again",
    ]


def test_driver_that_hangs_costs_one_bounded_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_ANSWER_SECONDS", 0.01)
    end = threading.Event()
    driver, clock = Driver(), Clock()
    card = Card("0", driver, clock)
    assert card.read() is not None
    driver.sensors["nvmlDeviceGetHandleByIndex"] = lambda: end.wait(60)
    for clock.now in range(1, 6):
        assert card.read() is None
    assert "does not answer within" in card.absence
    # One question is stuck; nobody queued others behind it.
    assert sum(asked[0] == "nvmlDeviceGetHandleByIndex" for asked in driver.asked) == 2
    end.set()
    assert card._stuck is not None
    card._stuck.join()
    driver.sensors["nvmlDeviceGetHandleByIndex"] = "handle"
    clock.now = 7
    assert card.temperature() == 71
    assert card.absence == ""


def test_readings_within_a_second_are_shared() -> None:
    driver, clock = Driver(), Clock()
    card = Card("0", driver, clock)
    for clock.now in (0, 0.5, 0.9, 1.0):
        card.read()
    assert sum(asked[0] == "nvmlDeviceGetTemperature" for asked in driver.asked) == 2


def test_machine_s_own_card_or_its_absence_raises_nothing() -> None:
    card = Card("0")
    found = card.read()
    assert (found is None) == bool(card.absence)
