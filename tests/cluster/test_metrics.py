"""Metrics: one table, reported through objects that need no Ray until there is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster import metrics
from cluster.metrics import (
    METRICS,
    TABLE,
    CallerMetrics,
    GpuMetrics,
    JobMetrics,
    JobReading,
    PinMetrics,
    ServiceMetrics,
)
from cluster.nvml import Card
from tests.cluster.test_nvml import UUID, Driver

Series = tuple[tuple[str, str], ...]


class Reported:
    """Stands for Ray's objects: keeps what they were told, checked against the table."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, Series], float] = {}
        self.calls = 0

    def __call__(self, name: str) -> Any:
        metric, values = METRICS[name], self.values

        class Recorder:
            def _key(self, kind: str, tags: Mapping[str, str]) -> tuple[str, Series]:
                assert metric.kind == kind, name
                assert set(tags) == set(metric.tags), name
                return name, tuple((key, tags[key]) for key in metric.tags)

            def inc(self, value: float, tags: Mapping[str, str]) -> None:
                assert value > 0, name
                key = self._key("counter", tags)
                values[key] = values.get(key, 0) + value

            def set(self, value: float, tags: Mapping[str, str]) -> None:
                values[self._key("gauge", tags)] = value

            def observe(self, value: float, tags: Mapping[str, str]) -> None:
                key = self._key("histogram", tags)
                values[key] = values.get(key, 0) + 1
                assert value >= 0, name

        self.calls += 1
        return Recorder()

    def of(self, name: str) -> dict[Series, float]:
        return {tags: value for (found, tags), value in self.values.items() if found == name}


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reported]:
    recorder = Reported()
    monkeypatch.setattr(metrics, "_reported", recorder)
    yield recorder


def report_everything(card: Card, folder: Path) -> None:
    """Calls every method once."""
    pin = PinMetrics("upscale")
    pin.replica_started()
    pin.replicas_lost(2)
    pin.queued(1, 7)
    pin.loaded("rvm-resnet50", 1, 4, 0)
    pin.ended("batch", "done", 0.02, 0.4)
    pin.frames("rvm-resnet50", 8)
    pin.shrunk("rvm-resnet50", 2, 512)
    pin.vram(2 << 30, 3 << 30)
    pin.paused("GPU 0 at 84 °C, over 83")
    pin.unloaded("rvm-resnet50", 0)
    pin.refresh()
    caller = CallerMetrics("upscale")
    caller.retried(3)
    caller.strike()
    JobMetrics("02000000").report(
        JobReading(10, {"done": 1, "failed": 1, "quarantined": 1}, {"running": 1}, 1, 2.0, 3.0, 4)
    )
    GpuMetrics(card, folder).report()
    service = ServiceMetrics()
    service.tasks({"queued": 2})
    service.answered("GET", "/v1/tasks/{task_id}", 200, 0.02)
    service.answered("GET", "/v1/tasks/{task_id}/events", 200, None)


def test_every_metric_of_the_table_is_reported_with_its_kind_and_tags(reported: Reported, tmp_path: Path) -> None:
    report_everything(Card("0", Driver()), tmp_path)
    assert {name for name, _ in reported.values} | {"troupe_pin_micro_batch", "troupe_pin_tile"} == set(METRICS)


def test_names_are_troupe_s_and_unique() -> None:
    assert len(METRICS) == len(TABLE)
    assert all(metric.name.startswith("troupe_") for metric in TABLE)
    assert all(bool(metric.buckets) == (metric.kind == "histogram") for metric in TABLE)
    assert all(list(metric.buckets) == sorted(set(metric.buckets)) for metric in TABLE)


def test_everything_can_be_reported_without_ray(tmp_path: Path) -> None:
    report_everything(Card("0", Driver()), tmp_path)


def test_call_that_was_cancelled_before_its_first_turn_has_no_times(reported: Reported) -> None:
    PinMetrics("upscale").ended("batch", "cancelled", None, 0.0)
    assert {name for name, _ in reported.values} == {"troupe_pin_calls"}


def test_refresh_sets_gauges_again_and_counts_nothing_twice(reported: Reported) -> None:
    pin = PinMetrics("upscale")
    pin.queued(0, 3)
    pin.frames("m", 8)
    before, reported.calls = dict(reported.values), 0
    reported.values = {key: value for key, value in reported.values.items() if key[0] == "troupe_pin_frames"}
    pin.refresh()
    assert reported.values == before
    assert reported.calls == 2


def test_sizes_of_an_unloaded_model_are_no_longer_told(reported: Reported) -> None:
    pin = PinMetrics("upscale")
    pin.loaded("m", 1, 4, 0)
    pin.shrunk("m", 2, 512)
    assert reported.of("troupe_pin_tile") == {(("pin", "upscale"), ("model", "m")): 512}
    pin.unloaded("m", 0)
    reported.values.clear()
    pin.refresh()
    assert {name for name, _ in reported.values} == {"troupe_pin_models"}


def test_job_s_counters_grow_by_what_is_new(reported: Reported) -> None:
    job = JobMetrics("j")
    for frames, done in ((8, 0), (8, 0), (20, 1), (24, 2)):
        job.report(JobReading(frames=frames, segments={"done": done}))
    assert reported.of("troupe_job_frames") == {(("job_id", "j"),): 24}
    assert reported.of("troupe_job_segments") == {(("job_id", "j"), ("state", "done")): 2}


def test_board_that_is_lost_for_a_moment_counts_nothing_twice(reported: Reported) -> None:
    job = JobMetrics("j")
    for frames in (8, 0, 8, 12):
        job.report(JobReading(frames=frames))
    assert reported.of("troupe_job_frames") == {(("job_id", "j"),): 12}


def test_eta_that_nobody_knows_is_not_told(reported: Reported) -> None:
    job = JobMetrics("j")
    job.report(JobReading(eta_s=5.0))
    job.report(JobReading(eta_s=None))
    reported.values.clear()
    job.refresh()
    assert reported.of("troupe_job_eta_seconds") == {}


def test_one_process_of_those_on_a_card_reports_it_and_another_takes_over(reported: Reported, tmp_path: Path) -> None:
    first, second = (GpuMetrics(Card("0", Driver()), tmp_path) for _ in range(2))
    temperature = "troupe_gpu_temperature_celsius"
    first.report()
    assert reported.of(temperature) == {(("gpu", "1"), ("uuid", UUID), ("card", "NVIDIA GeForce RTX 3060")): 71}
    reported.values.clear()
    second.report()
    assert reported.of(temperature) == {}
    assert first._lock is not None
    metrics.os.close(first._lock)  # what the kernel does when the process ends
    second.report()
    assert len(reported.of(temperature)) == 1


def test_card_that_does_not_answer_reports_nothing(reported: Reported, tmp_path: Path) -> None:
    GpuMetrics(Card(""), tmp_path).report()
    assert reported.values == {}
