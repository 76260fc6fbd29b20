"""The bench of layouts runs the same job on both and asks both while they work. No figure is judged here."""

from __future__ import annotations

import json

import pytest

from bench import pins
from bench.setup import LAYOUTS
from tests.conftest import SoakCount

pytestmark = pytest.mark.ray


@pytest.mark.soak
@pytest.mark.usefixtures("on_local_ray")
def test_layouts_do_the_same_frames_and_answer_requests(
    soak_count: SoakCount, capsys: pytest.CaptureFixture[str]
) -> None:
    layouts = LAYOUTS[-soak_count(1, len(LAYOUTS)) :]
    tiny = ["--networks", "light", "--frames", "2", "--rounds", "1", "--threads", "1", "--share", "0.9", "--json"]
    pins.main(["--pins", *layouts, *tiny])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["pins"] for row in rows] == list(layouts)
    for row in rows:
        assert row["frames"] == 20
        assert row["fps"] > 0
        assert row["pss_mib"] > 50
        assert row["requests"] >= 1
        assert 0 <= row["wait_p50_s"] <= row["wait_p95_s"]
    assert rows[0][f"of_{layouts[0]}"] == 1
    # Two processes with torch in them, against one.
    assert [row["pss_mib"] for row in rows] == sorted((row["pss_mib"] for row in rows), reverse=True)
