"""Batches on their way through two pins fill little of the object store, whichever way Ray was started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.store import GOAL_MB
from tests.conftest import SoakCount

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.ray


@pytest.mark.soak
def test_object_store_stays_small_on_a_local_ray_and_on_a_started_one(soak_count: SoakCount) -> None:
    batches = soak_count(0, 200)
    places = ["local", "started"]
    command = [sys.executable, "-m", "bench.store", "--on", *places, "--batches", str(batches), "--mb", "10", "--json"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)["rows"]
    assert [row["place"] for row in rows] == places
    for row in rows:
        assert row["batches"] == batches
        assert row["batch_mb"] == pytest.approx(10, rel=0.1)
        assert row["samples"] > batches
        # A batch is in the store, and so is what the first pin made of it.
        assert 2 * row["batch_mb"] < row["peak_mb"] <= GOAL_MB
        assert row["spilled_mb"] == 0
