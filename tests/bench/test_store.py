"""Batches on their way through two pins fill little of the object store, whichever way Ray was started."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from ray import serve as ray_serve

from bench import store
from cluster.session import Session
from tests.conftest import SoakCount


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_object_store_stays_small_on_a_local_ray_and_on_a_started_one(
    local_ray: Session, soak_count: SoakCount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer batches are sent through the local one alone."""
    batches = soak_count(30, 200)
    with monkeypatch.context() as patch:
        patch.setattr(store, "connect", lambda **_: nullcontext(local_ray))
        rows = [store.measure("local", batches, 10)]
    for pin in ("bench-first", "bench-second"):
        ray_serve.delete(pin)
    if batches == 200:
        rows.append(store.measure_apart("started", batches, 10))
    for row in rows:
        assert row.batches == batches
        assert row.batch_mb == pytest.approx(10, rel=0.1)
        assert row.samples > batches
        # A batch is in the store, and so is what the first pin made of it.
        assert 2 * row.batch_mb < row.peak_mb <= store.GOAL_MB
        assert row.spilled_mb == 0
