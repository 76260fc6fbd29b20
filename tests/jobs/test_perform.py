"""Batches on a real Ray: pins are found again, lost lanes and pins cost nothing but time, one video never another."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import ray

from actors.catalogue import CARDS
from actors.model import Setup, Step
from cluster import metrics
from cluster.errors import ClusterError
from cluster.pins import describe
from cluster.weights import WeightsStore
from jobs.batch import Batch
from jobs.pins import resident_steps
from jobs.plan import plan_video
from jobs.progress import Reporter
from jobs.restage.finish import Restaging
from jobs.task import VideoTask
from tests.cluster.test_metrics import Reported
from tests.jobs.performing import (
    CONFIG,
    TWO_LANES,
    Performed,
    Performing,
    clips,
    tasks_of,
    undisturbed,
)
from tests.media import number, read_rgb
from tests.models import with_test_models
from tests.pins import FIRST, RVM, SECOND, UPSCALE

pytestmark = pytest.mark.usefixtures("test_models")

TRAIL = "pinned-trail-too"


def in_lane(monkeypatch: pytest.MonkeyPatch, store: Path, *models: str) -> None:
    """Makes these models ones of the lane, for this process."""
    for model in models:
        card = CARDS[model]
        paths = tuple(WeightsStore(store).find(name).path for name in card.weights)
        loaded = card.load(Setup(paths))
        monkeypatch.setitem(CARDS, model, replace(card, resident=False, load=lambda _, m=loaded: m))


@pytest.mark.usefixtures("pins")
def test_job_uses_the_models_that_are_loaded_and_equals_one_process(
    performed: Performing, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (Step(TRAIL), Step(UPSCALE, {}, {"size": [96, 72]}), Step(RVM, {}, {"long_side": 64}))
    (task,) = (composed(t) for t in tasks_of(tmp_path, "out", "a.mp4", steps=steps))
    asked = {pin.name: [asdict(step) for step in resident_steps(task, CONFIG, pin)] for pin in CONFIG.pins}
    before = {pin: describe(pin, of_it, 60) for pin, of_it in asked.items()}
    done = performed([task])
    assert done.outcomes["a.mp4"].status == "done", done.outcomes["a.mp4"].error
    for pin, answer in before.items():
        assert [note for note in done.notes if f"{pin} was running (process {answer['pid']}" in note]
        after = describe(pin, (), 60)
        assert (after["pid"], after["loads"]) == (answer["pid"], answer["loads"])
        assert after["calls"] > answer["calls"]
    in_lane(monkeypatch, tiny_weights, TRAIL, UPSCALE, RVM)
    assert task.output.read_bytes() == undisturbed(task, tmp_path / "alone")


def composed(task: VideoTask) -> VideoTask:
    """The task with a larger result and a colour behind whoever its steps cut out."""
    assert isinstance(task.finish, Restaging)
    return replace(task, finish=replace(task.finish, size=(96, 72), background="#20405f", background_hash="#20405f"))


def skewed(tasks: list[VideoTask]) -> list[VideoTask]:
    """The tasks, the first with a step of a pin, the second made by other code."""
    return [replace(tasks[0], steps=(Step(UPSCALE, {}, {"size": [64, 48]}),)), replace(tasks[1], code="another")]


@pytest.fixture(scope="module")
def allowed(performed: Performing, tmp_path_factory: pytest.TempPathFactory, pins: None) -> Performed:  # noqa: ARG001
    """A job that goes on though its pin and its lane run other code."""
    tasks = skewed(tasks_of(tmp_path_factory.mktemp("allowed"), "out", "a.mp4", "b.mp4"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.pins.code_hash", lambda *_: "another")
        return performed(tasks, allow_skew=True)


def test_pin_that_is_not_what_the_job_expects_is_refused_unless_allowed(
    performed: Performing, allowed: Performed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _ = skewed(tasks_of(tmp_path, "out", "a.mp4", "b.mp4"))
    refused = r"pin test-first: is not what this job expects: {}.*--allow-skew"
    config = CONFIG.model_copy(update={"pins": (FIRST.model_copy(update={"tile": 64}), SECOND)})
    with pytest.raises(ClusterError, match=refused.format("tile 0 against 64")):
        performed([task], config)
    with pytest.raises(ClusterError, match=refused.format(f"weights {UPSCALE}")):
        performed([replace(task, weights={UPSCALE: "0" * 64})])
    monkeypatch.setattr("jobs.pins.code_hash", lambda *_: "another")
    with pytest.raises(ClusterError, match=refused.format("code .* against another here")):
        performed([task])
    assert allowed.outcomes["a.mp4"].status == "done", allowed.outcomes["a.mp4"].error
    (told,) = [note for note in allowed.notes if "against another here (--allow-skew)" in note]
    assert allowed.outcomes["a.mp4"].row["notices"] == [told]


def test_lane_of_other_code_is_refused_unless_allowed_and_then_told(harmed: Harmed, allowed: Performed) -> None:
    assert harmed.done.statuses["skewed.mp4"] == "failed"
    assert "runs other code" in harmed.done.outcomes["skewed.mp4"].error
    assert allowed.outcomes["b.mp4"].status == "done", allowed.outcomes["b.mp4"].error
    (notice,) = allowed.outcomes["b.mp4"].row["notices"]
    assert "runs other code" in notice
    assert notice.endswith("than this job (another) (--allow-skew)")
    assert allowed.notes.count(f"b.mp4: {notice}") == 1


def test_dead_assembler_ends_the_job_with_its_error(
    performed: Performing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(_: Batch) -> None:
        raise MemoryError("no room for the assembler")

    monkeypatch.setattr(Batch, "_assemble", dying)
    clips(tmp_path, "a.mp4", frames=4)
    with pytest.raises(MemoryError, match="no room for the assembler"):
        performed(tasks_of(tmp_path, "out", "a.mp4"))


@dataclass(frozen=True)
class Harmed:
    """A job most of whose videos meet with an accident, each with another one.

    Attributes:
        tasks: all, by the names of their clips.
        lane_died, pin_died: files that are there since a lane, or a pin, has died of a video that goes on after it.
        reported: what the driver reported to Ray.
    """

    tasks: dict[str, VideoTask]
    done: Performed
    lane_died: Path
    pin_died: Path
    reported: Reported


FAILING = ("poison.mp4", "error.mp4", "pin_error.mp4", "unrecorded.mp4", "skewed.mp4")
FINISHING = ("a.mp4", "lane.mp4", "pin.mp4", "b.mp4")


@pytest.fixture(scope="module")
def harmed(performed: Performing, tmp_path_factory: pytest.TempPathFactory) -> Harmed:
    folder = tmp_path_factory.mktemp("harmed")
    names = ("a.mp4", *FAILING, "lane.mp4", "pin.mp4", "b.mp4")
    tasks = {task.source.name: task for task in tasks_of(folder, "out", *names)}
    pts = int(plan_video(tasks["a.mp4"]).scan.pts[20])  # of all clips
    lane_died, pin_died = folder / "lane-died", folder / "pin-died"
    for name, *steps in (
        ("poison.mp4", Step("echo", {}, {"die_at": 0})),
        ("error.mp4", Step("echo", {}, {"raise_at": 0})),
        ("pin_error.mp4", Step("pinned-echo", {}, {"raise_at": 0})),
        ("lane.mp4", Step("trail", {}, {"die_at": pts, "once": str(lane_died)})),
        ("pin.mp4", Step("pinned-trail"), Step("pinned-trail-too", {}, {"die_at": pts, "once": str(pin_died)})),
    ):
        tasks[name] = replace(tasks[name], steps=tuple(steps))
    (folder / "blocked").mkdir()
    (folder / "blocked" / "ledger").write_text("in the way")
    tasks["unrecorded.mp4"] = replace(tasks["unrecorded.mp4"], root=folder / "blocked")
    tasks["skewed.mp4"] = replace(tasks["skewed.mp4"], code="another")
    reported = Reported()
    with with_test_models(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_reported", reported)
        return Harmed(tasks, performed(list(tasks.values()), TWO_LANES), lane_died, pin_died, reported)


def test_lane_that_dies_is_replaced_and_its_video_finishes_the_same(harmed: Harmed, tmp_path: Path) -> None:
    assert harmed.lane_died.exists()
    assert harmed.done.statuses["lane.mp4"] == "done"
    task = harmed.tasks["lane.mp4"]
    assert task.output.read_bytes() == undisturbed(replace(task, steps=(Step("trail"),)), tmp_path)


def test_videos_that_fail_are_told_by_name_and_the_others_finish(harmed: Harmed) -> None:
    done = harmed.done
    assert done.statuses == dict.fromkeys(FAILING, "failed") | dict.fromkeys(FINISHING, "done")
    errors = {name: outcome.error for name, outcome in done.outcomes.items()}
    assert {errors[name] for name in FINISHING} == {""}
    assert "the lanes that worked on it died" in errors["poison.mp4"]
    assert "frame at 0 is not to its taste" in errors["error.mp4"]
    assert "frame at 0 is not to its taste" in errors["pin_error.mp4"]
    assert "ledger" in errors["unrecorded.mp4"]
    for name in FAILING:
        assert errors[name].startswith(f"{name}: ")
        assert "\n" not in errors[name]
        assert not harmed.tasks[name].output.exists() or name == "unrecorded.mp4"
    told = [Path(event["input"]).name for event in done.events if event["event"] == "failed"]
    assert sorted(told) == sorted(FAILING)
    assert [number(frame) for frame in read_rgb(harmed.tasks["b.mp4"].output)] == list(range(800, 836))


def test_pin_that_dies_costs_nothing_but_retries(harmed: Harmed, tmp_path: Path) -> None:
    assert harmed.pin_died.exists()
    outcome = harmed.done.outcomes["pin.mp4"]
    assert outcome.status == "done", outcome.error
    assert outcome.row["retries"] >= 1
    assert [note for note in harmed.done.notes if note.startswith("pin.mp4: pin test-") and "lost, repeating" in note]
    in_lane = replace(outcome.task, steps=(Step("trail"), Step("trail")))
    assert outcome.task.output.read_bytes() == undisturbed(in_lane, tmp_path)


def test_job_reports_what_became_of_its_segments(harmed: Harmed) -> None:
    def by_state(name: str) -> dict[str, float]:
        return {dict(tags)["state"]: value for tags, value in harmed.reported.of(name).items()}

    segments = by_state("troupe_job_segments")
    # Those of the video without a ledger are done too. What a lane tells while it dies may not arrive.
    assert segments.pop("done") in {14, 15}
    assert segments == {"failed": 2}
    (frames,) = harmed.reported.of("troupe_job_frames").values()
    assert frames >= 36 * len(FINISHING)
    videos = by_state("troupe_job_videos")
    assert (videos["done"], videos["failed"]) == (len(FINISHING), len(FAILING))
    assert list(harmed.reported.of("troupe_job_lanes_paused").values()) == [0]


def test_more_videos_than_lanes_all_end_even_without_the_progress_actor(
    performed: Performing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Reporter.start

    def start_and_kill() -> Reporter:
        reporter = started()
        ray.get(reporter._board.snapshot.remote())
        ray.kill(reporter._board)
        return reporter

    monkeypatch.setattr(Reporter, "start", start_and_kill)
    names = [f"{i}.mp4" for i in range(4)]
    clips(tmp_path, *names, frames=4)
    done = performed(tasks_of(tmp_path, "out", *names))
    assert done.statuses == dict.fromkeys(names, "done")
