"""The bench of layouts runs the same job on both and asks both while they work. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.setup import LAYOUTS
from tests.conftest import SoakCount

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.ray


@pytest.mark.soak
def test_layouts_do_the_same_frames_and_answer_requests(soak_count: SoakCount) -> None:
    layouts = LAYOUTS[: soak_count(1, len(LAYOUTS))]
    tiny = ["--networks", "light", "--frames", "2", "--rounds", "1", "--threads", "1", "--share", "0.9", "--json"]
    command = [sys.executable, "-m", "bench.pins", "--pins", *layouts, *tiny]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)["rows"]
    assert [row["pins"] for row in rows] == list(layouts)
    for row in rows:
        assert row["frames"] == 20
        assert row["fps"] > 0
        assert row["pss_mib"] > 50
        assert row["requests"] >= 1
        assert 0 <= row["wait_p50_s"] <= row["wait_p95_s"]
    assert rows[0]["of_each"] == 1
    # Two processes with torch in them, against one.
    assert [row["pss_mib"] for row in rows] == sorted((row["pss_mib"] for row in rows), reverse=True)
