"""The bench of priority loads a real pin and says what nobody could beat. No figure is judged here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ray import serve as ray_serve

from bench.load import Served, quantile
from bench.priority import against_fakes, arguments, ideal_waits, table

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def rows(local_ray: object) -> Iterator[dict[str, dict[str, Any]]]:  # noqa: ARG001 - it must be there
    """What a short measurement gives, by part."""
    yield {row["part"]: row for row in against_fakes(arguments(["--requests", "20", "--burst", "10"]))}
    ray_serve.delete("bench-priority")


def test_requests_and_batch_share_the_pin_and_both_are_counted(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["stream"]
    assert row["requests"] == 20
    assert 0 < row["rate_per_s"] <= 6
    assert row["goal_wait_p95_ms"] >= 80
    assert 0 < row["wait"]["p50_ms"] <= row["wait"]["p95_ms"] < row["latency"]["p99_ms"]
    assert row["run_p50_ms"] >= 50
    assert row["batch_kept"] > 0


def test_burst_is_compared_with_its_own_time_in_the_pin(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["burst"]
    assert row["requests"] == 10
    assert row["pin_s"] >= 10 * 0.05
    assert row["ratio"] == pytest.approx(row["whole_s"] / row["pin_s"])


def test_table_shows_every_row(rows: dict[str, dict[str, Any]]) -> None:
    text = table({"cores": 2}, list(rows.values()))
    assert "stream: fake, 5 x 10 ms a call" in text
    assert "goal_wait_p95_ms" in text


def test_ideal_wait_is_the_turn_in_progress_and_the_requests_before() -> None:
    def waits(turn: float, *arrived: float) -> list[float]:
        return [round(wait, 9) for wait in ideal_waits([Served(at, 0, 0, 0) for at in arrived], 0.05, turn)]

    # In the middle of a turn; then behind that one and its call; then on an idle moment's border.
    assert waits(0.05, 0.02, 0.03, 0.20) == [0.03, 0.07, 0.0]
    assert waits(0.01, 0.02, 0.03, 0.205) == [0.0, 0.04, 0.005]


def test_quantile_is_a_value_that_was_measured() -> None:
    assert [quantile([3.0, 1.0, 2.0, 4.0], q) for q in (0.5, 0.75, 0.95)] == [2.0, 3.0, 4.0]
