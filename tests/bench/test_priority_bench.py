"""The bench of priority loads a real pin and says what nobody could beat. No figure is judged here."""

from __future__ import annotations

import pytest
from ray import serve as ray_serve

from bench.load import Served, quantile
from bench.priority import against_fakes, arguments, ideal_waits, table
from cluster.session import Session
from tests.conftest import SoakCount


@pytest.mark.soak
def test_requests_batch_and_burst_share_the_pin_and_are_counted(local_ray: Session, soak_count: SoakCount) -> None:  # noqa: ARG001 - it must be there
    requests = soak_count(4, 20)
    try:
        rows = list(against_fakes(arguments([f"--requests={requests}", "--burst=5"])))
    finally:
        ray_serve.delete("bench-priority")
    stream, burst = ({row["part"]: row for row in rows}[part] for part in ("stream", "burst"))
    assert stream["requests"] == requests
    assert 0 < stream["rate_per_s"] <= 6
    assert stream["goal_wait_p95_ms"] >= 80
    assert 0 < stream["wait"]["p50_ms"] <= stream["wait"]["p95_ms"] < stream["latency"]["p99_ms"]
    assert stream["run_p50_ms"] >= 50
    assert stream["batch_kept"] > 0
    assert burst["requests"] == 5
    assert burst["pin_s"] >= 5 * 0.05
    assert burst["ratio"] == pytest.approx(burst["whole_s"] / burst["pin_s"])
    text = table({"cores": 2}, rows)
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
