"""The bench of layouts runs the same job on both and asks both while they work. No figure is judged here."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext

import pytest
from ray import serve as ray_serve

from bench import pins
from bench.setup import LAYOUTS
from cluster.session import Session
from tests.conftest import SoakCount
from tests.jobs.performing import jobs_on

pytestmark = pytest.mark.ray


@pytest.mark.soak
def test_layouts_do_the_same_frames_and_answer_requests(
    local_ray: Session, soak_count: SoakCount, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    soak_count(0, len(LAYOUTS))

    def staying_ray(weights: object) -> nullcontext[int]:
        """The Ray of this process, which holds it."""
        monkeypatch.setenv("TROUPE_WEIGHTS", str(weights))
        return nullcontext(os.getpid())

    monkeypatch.setattr(pins, "staying_ray", staying_ray)
    tiny = ["--networks", "light", "--frames", "2", "--rounds", "1", "--threads", "1", "--share", "0.9", "--json"]
    with jobs_on(local_ray):
        pins.main(["--pins", *LAYOUTS, *tiny])
    rows = json.loads(capsys.readouterr().out)["rows"]
    for name in {"light-one", "light-upscale", "light-matte"} & set(ray_serve.status().applications):
        ray_serve.delete(name)
    assert [row["pins"] for row in rows] == list(LAYOUTS)
    for row in rows:
        assert row["frames"] == 20
        assert row["fps"] > 0
        assert row["pss_mib"] > 50
        assert row["requests"] >= 1
        assert 0 <= row["wait_p50_s"] <= row["wait_p95_s"]
    assert rows[0][f"of_{LAYOUTS[0]}"] == 1
    # Two processes with torch in them, against one.
    assert [row["pss_mib"] for row in rows] == sorted((row["pss_mib"] for row in rows), reverse=True)
