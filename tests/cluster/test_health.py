"""What `troupe doctor` says of a machine."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from cluster.errors import UsageError
from cluster.health import (
    TorchFound,
    check_disk,
    check_memory,
    check_open_files,
    check_packages,
    check_sensors,
    check_shared_memory,
    failed,
    judge_freeing,
    judge_gpu,
    memory_bytes,
)
from cluster.nvml import Card
from tests.cluster.test_nvml import Driver

CARD = "NVIDIA GeForce RTX 3060, 12288 MiB, 535.54"
SEEN = TorchFound("2.13.0", built="13.0", devices=1)
UNSEEN = TorchFound("2.13.0", built="13.0")


@pytest.mark.parametrize(
    ("cards", "found", "visible", "status", "says"),
    [
        ([CARD], SEEN, None, "ok", "RTX 3060"),
        ([], TorchFound("2.13.0+cpu"), None, "ok", "on the CPU"),
        ([CARD], UNSEEN, "", "ok", "hidden by CUDA_VISIBLE_DEVICES"),
        ([CARD], TorchFound("2.13.0+cpu"), None, "warn", "install torch with CUDA"),
        ([CARD], UNSEEN, None, "warn", "driver for CUDA 13.0"),
        ([CARD], TorchFound("2.13.0", "13.0", 1, "no kernel image"), None, "fail", "no kernel image"),
    ],
)
def test_gpu_is_judged_by_what_torch_can_do_on_it(
    cards: list[str], found: TorchFound, visible: str | None, status: str, says: str
) -> None:
    check = judge_gpu(cards, found, visible)
    assert check.status == status
    assert says in f"{check.detail} {check.remedy}"


def test_slow_freeing_of_objects_warns_with_the_settings_that_cure_it() -> None:
    assert judge_freeing(0.003).status == "ok"
    slow = judge_freeing(1.0)
    assert slow.status == "warn"
    assert "RAY_free_objects_period_milliseconds=50 RAY_free_objects_batch_size=1" in slow.remedy


def test_disk_is_judged_before_its_folder_exists(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert check_disk("output disk", folder, warn_below=1, fail_below=0).status == "ok"
    assert check_disk("output disk", folder, warn_below=1 << 60, fail_below=0).status == "warn"
    assert check_disk("output disk", folder, warn_below=1 << 61, fail_below=1 << 60).status == "fail"
    assert not folder.exists()


def test_disk_of_a_folder_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert check_disk("output disk", tmp_path / "file").status == "fail"


def test_small_shared_memory_names_the_size_that_is_needed(tmp_path: Path) -> None:
    check = check_shared_memory(32 * 10**9, tmp_path / "absent")
    assert check.status == "warn"
    assert "--shm-size=10g" in check.remedy


def test_little_memory_warns() -> None:
    assert check_memory(4 * 10**9).status == "warn"
    assert check_memory(32 * 10**9).status == "ok"
    assert memory_bytes() > 10**8


@pytest.mark.parametrize(("hard", "status"), [(1024, "warn"), (1 << 20, "ok"), (resource.RLIM_INFINITY, "ok")])
def test_few_open_files_warn(monkeypatch: pytest.MonkeyPatch, hard: int, status: str) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _which: (256, hard))  # the soft limit is raised by Ray itself
    assert check_open_files().status == status


def test_absent_package_fails_with_the_command_that_installs_it() -> None:
    check = check_packages(("pydantic", "no-such-package"))
    assert check.status == "fail"
    assert check.remedy == "pip install no-such-package"


def test_error_becomes_a_failed_check_with_its_remedy() -> None:
    check = failed("Ray", UsageError("Ray 2.40", "is too old", remedy="upgrade"))
    assert (check.status, check.detail, check.remedy) == ("fail", "Ray 2.40: is too old", "upgrade")


def test_sensors_of_a_card_are_told() -> None:
    check = check_sensors(Card("0", Driver()))
    assert check.status == "ok"
    assert check.detail == "NVIDIA GeForce RTX 3060 (GPU 1), 71 °C, 170 W, 3.2 of 12.9 GB in use"


def test_card_that_hides_its_temperature_is_a_warning() -> None:
    check = check_sensors(Card("0", Driver(nvmlDeviceGetTemperature=RuntimeError("Not Supported"))))
    assert check.status == "warn"
    assert "no temperature" in check.detail


def test_machine_without_a_driver_is_told_that_heat_limits_nothing() -> None:
    check = check_sensors(Card("0", Driver(nvmlInit=RuntimeError("NVML Shared Library Not Found"))))
    assert (check.status, "heat limits nothing" in check.detail) == ("ok", True)
