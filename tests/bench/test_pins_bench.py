"""The bench of layouts runs the same job on both and asks both while they work. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.long


def test_both_layouts_do_the_same_frames_and_answer_requests() -> None:
    tiny = ["--networks", "light", "--frames", "2", "--rounds", "1", "--threads", "1", "--share", "0.9", "--json"]
    command = [sys.executable, "-m", "bench.pins", *tiny]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)["rows"]
    assert [row["pins"] for row in rows] == ["each", "one"]
    for row in rows:
        assert row["frames"] == 20
        assert row["fps"] > 0
        assert row["pss_mib"] > 50
        assert row["requests"] >= 1
        assert 0 <= row["wait_p50_s"] <= row["wait_p95_s"]
    assert rows[0]["of_each"] == 1
    # Two processes with torch in them, against one.
    assert rows[0]["pss_mib"] > rows[1]["pss_mib"]
