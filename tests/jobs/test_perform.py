"""Batches on a real Ray: pins are found again, lost lanes and pins cost nothing but time, one video never another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import ray

from actors.catalogue import CARDS
from actors.model import Setup, Step
from actors.pin import build
from cluster.errors import ClusterError
from cluster.pins import describe, ensure_pins
from cluster.weights import WeightsStore
from jobs.batch import Batch
from jobs.plan import plan_video
from jobs.progress import Reporter
from jobs.restage.finish import Restaging
from jobs.task import VideoTask
from tests.jobs.performing import (
    CONFIG,
    PINS,
    RVM,
    TWO_LANES,
    UPSCALE,
    Performed,
    Performing,
    clips,
    tasks_of,
    undisturbed,
)
from tests.media import number, read_rgb
from tests.models import with_test_models

pytestmark = pytest.mark.usefixtures("test_models")


def in_lane(monkeypatch: pytest.MonkeyPatch, store: Path, *models: str) -> None:
    """Makes these models ones of the lane, for this process."""
    for model in models:
        card = CARDS[model]
        paths = tuple(WeightsStore(store).find(name).path for name in card.weights)
        loaded = card.load(Setup(paths))
        monkeypatch.setitem(CARDS, model, replace(card, resident=False, load=lambda _, m=loaded: m))


def test_second_job_uses_the_loaded_models_and_both_equal_one_process(
    performed: Performing, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (Step(UPSCALE, {}, {"size": [96, 72]}), Step(RVM, {}, {"long_side": 64}))
    task, other = (composed(t) for t in tasks_of(tmp_path, "out", "a.mp4", "b.mp4", steps=steps))
    first = performed([task])
    assert first.outcomes["a.mp4"].status == "done", first.outcomes["a.mp4"].error
    assert [note for note in first.notes if "job-upscale started" in note]
    before = {pin.name: describe(pin.name, (), 60) for pin in PINS}
    second = performed([other])
    assert second.outcomes["b.mp4"].status == "done"
    assert [note for note in second.notes if f"job-matte was running (process {before['job-matte']['pid']}" in note]
    for name, answer in before.items():
        after = describe(name, (), 60)
        assert (after["pid"], after["loads"]) == (answer["pid"], answer["loads"])
        assert after["calls"] > answer["calls"]
    in_lane(monkeypatch, tiny_weights, UPSCALE, RVM)
    assert task.output.read_bytes() == undisturbed(task, tmp_path / "alone")


def composed(task: VideoTask) -> VideoTask:
    """The task with a larger result and a colour behind whoever its steps cut out."""
    assert isinstance(task.finish, Restaging)
    return replace(task, finish=replace(task.finish, size=(96, 72), background="#20405f", background_hash="#20405f"))


def test_pin_that_is_not_what_the_job_expects_is_refused_unless_allowed(
    performed: Performing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_pins(PINS, build)
    (task,) = tasks_of(tmp_path, "out", "a.mp4", steps=(Step(UPSCALE, {}, {"size": [64, 48]}),))
    refused = r"pin job-upscale: is not what this job expects: {}.*--allow-skew"
    config = CONFIG.model_copy(update={"pins": (PINS[0].model_copy(update={"tile": 64}), PINS[1])})
    with pytest.raises(ClusterError, match=refused.format("tile 0 against 64")):
        performed([task], config)
    with pytest.raises(ClusterError, match=refused.format(f"weights {UPSCALE}")):
        performed([replace(task, weights={UPSCALE: "0" * 64})])
    monkeypatch.setattr("jobs.pins.code_hash", lambda *_: "another")
    with pytest.raises(ClusterError, match=refused.format("code .* against another here")):
        performed([task])
    allowed = performed([task], allow_skew=True)
    assert allowed.statuses == {"a.mp4": "done"}
    (told,) = [note for note in allowed.notes if "against another here (--allow-skew)" in note]
    assert allowed.outcomes["a.mp4"].row["notices"] == [told]


def test_lane_of_other_code_is_refused_unless_allowed_and_then_told(performed: Performing, tmp_path: Path) -> None:
    tasks = [replace(task, code="another") for task in tasks_of(tmp_path, "out", "a.mp4", "b.mp4")]
    refused = performed(tasks)
    assert refused.statuses == {"a.mp4": "failed", "b.mp4": "failed"}
    assert "runs other code" in refused.outcomes["a.mp4"].error
    allowed = performed(tasks, allow_skew=True)
    for name, outcome in allowed.outcomes.items():
        (notice,) = outcome.row["notices"]
        assert "runs other code" in notice
        assert notice.endswith("than this job (another) (--allow-skew)")
        assert allowed.notes.count(f"{name}: {notice}") == 1


def test_dead_assembler_ends_the_job_with_its_error(
    performed: Performing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(_: Batch) -> None:
        raise MemoryError("no room for the assembler")

    monkeypatch.setattr(Batch, "_assemble", dying)
    with pytest.raises(MemoryError, match="no room for the assembler"):
        performed(tasks_of(tmp_path, "out", "a.mp4"))


@dataclass(frozen=True)
class Harmed:
    """A job most of whose videos meet with an accident, each with another one.

    Attributes:
        tasks: all, by the names of their clips.
        lane_died, pin_died: files that are there since a lane, or a pin, has died of a video that goes on after it.
    """

    tasks: dict[str, VideoTask]
    done: Performed
    lane_died: Path
    pin_died: Path


FAILING = ("poison.mp4", "error.mp4", "pin_error.mp4", "unrecorded.mp4")
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
    with with_test_models():
        return Harmed(tasks, performed(list(tasks.values()), TWO_LANES), lane_died, pin_died)


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
    assert [number(frame) for frame in read_rgb(harmed.tasks["b.mp4"].output)] == list(range(700, 736))


def test_pin_that_dies_costs_nothing_but_retries(harmed: Harmed, tmp_path: Path) -> None:
    assert harmed.pin_died.exists()
    outcome = harmed.done.outcomes["pin.mp4"]
    assert outcome.status == "done", outcome.error
    assert outcome.row["retries"] >= 1
    assert [note for note in harmed.done.notes if note.startswith("pin.mp4: pin job-") and "lost, repeating" in note]
    in_lane = replace(outcome.task, steps=(Step("trail"), Step("trail")))
    assert outcome.task.output.read_bytes() == undisturbed(in_lane, tmp_path)


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
    names = [f"{i}.mp4" for i in range(7)]
    clips(tmp_path, *names, frames=4)
    done = performed(tasks_of(tmp_path, "out", *names))
    assert done.statuses == dict.fromkeys(names, "done")
