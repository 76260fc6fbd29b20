"""A job's metrics say what became of its segments and its frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from actors.model import Step
from cluster import metrics
from cluster.callboard import Callboard
from jobs.perform import _held
from jobs.plan import plan_video
from tests.cluster.test_metrics import Reported
from tests.jobs.performing import CONFIG, Performing, tasks_of
from tests.pins import FIRST

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("test_models")]


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> Reported:
    """What the driver's process reports."""
    recorder = Reported()
    monkeypatch.setattr(metrics, "_reported", recorder)
    return recorder


def by_state(reported: Reported, name: str) -> dict[str, float]:
    return {dict(tags)["state"]: value for tags, value in reported.of(name).items()}


@pytest.mark.usefixtures("pins")
def test_job_reports_what_became_of_its_segments(performed: Performing, reported: Reported, tmp_path: Path) -> None:
    plain = tasks_of(tmp_path, "out", "good.mp4", "lost.mp4", "bad.mp4", steps=(Step("pinned-trail"),))
    pts = plan_video(plain[0]).scan.pts
    harm = {
        # A pin that dies once costs a strike and no segment.
        "lost.mp4": {"die_at": int(pts[20]), "once": str(tmp_path / "died")},
        "bad.mp4": {"raise_at": int(pts[14])},
    }
    tasks = [replace(task, steps=(Step("pinned-trail", {}, harm.get(task.source.name, {})),)) for task in plain]
    done = performed(tasks, CONFIG.model_copy(update={"pins": (FIRST,)}))
    assert done.statuses == {"good.mp4": "done", "lost.mp4": "done", "bad.mp4": "failed"}
    segments = by_state(reported, "troupe_job_segments")
    # Those of the failed video that were through before its error are kept.
    assert segments.pop("done") in {6, 7}
    assert segments == {"failed": 1}
    (frames,) = reported.of("troupe_job_frames").values()
    assert frames >= 72
    assert by_state(reported, "troupe_job_videos")["done"] == 2
    assert by_state(reported, "troupe_job_videos")["failed"] == 1
    assert list(reported.of("troupe_job_lanes_paused").values()) == [0]


def test_pins_of_the_job_that_hold_their_batch_calls_are_told() -> None:
    class Board(Callboard):
        def __init__(self) -> None: ...

        def states(self) -> dict[str, dict[str, str]]:  # type: ignore[override]
            hot = {"a": "GPU 0 at 84 °C, over 83", "b": "", "c": "GPU 1 at 90 °C, over 83"}
            return {name: {"pin": name, "held": held} for name, held in hot.items()}

    assert _held(Board(), {"a", "b"}) == {"a": "GPU 0 at 84 °C, over 83"}
