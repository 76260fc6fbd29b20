"""The lane: any batch size, segment length or interruption gives the frames of one call on the whole clip."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from actors.catalogue import CARDS
from actors.frames import Carry, FrameBatch
from actors.model import Model, Setup, Step
from actors.result import Result
from actors.video.decode import Decoder
from actors.video.scan import Scan
from cluster.errors import JobError, LostStateError, MediaError, UsageError
from jobs.chain import Chain
from jobs.lane import run_segments
from jobs.ledger import WorkFolder
from jobs.plan import Plan, make_plan, plan_video
from jobs.task import VideoTask
from tests.jobs.inprocess import config_of, do_segments, task_of
from tests.jobs.recording import Recorder, Recording, assert_same
from tests.media import write_clip
from tests.models import Trail

ROOT = Path(__file__).resolve().parents[2]
RATE, SECONDS, CUT = 6, 9, 32
SIZE = 64, 48
RVM_PARAMS = {"long_side": 48}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lane")
    return write_clip(folder / "a.mp4", frames=RATE * SECONDS, rate=RATE, width=SIZE[0], height=SIZE[1]).path


@pytest.fixture(scope="module")
def rvm(tiny_weights: Path) -> Iterator[Model]:
    """RVM, and the same inside the lane."""
    card = CARDS["rvm-mobilenetv3"]
    model = card.load(Setup((tiny_weights / "rvm_mobilenetv3.pth",)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CARDS, card.name, replace(card, resident=False, load=lambda _: model))
        yield model


@pytest.fixture(scope="module")
def one_call(clip: Path, rvm: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[int, NDArray[np.uint8]]:
    """RVM on the whole clip at once."""
    task, plan = prepared(clip, tmp_path_factory.mktemp("reference"), ())
    return whole(plan, rvm, task, RVM_PARAMS)


def prepared(clip: Path, output: Path, steps: tuple[Step, ...], segment_seconds: float = 1) -> tuple[VideoTask, Plan]:
    """A task that records its frames, and its plan with a cut."""
    task = replace(
        task_of(clip, output, config_of(segment_seconds=segment_seconds)), steps=steps, finish=Recording(SIZE)
    )
    task = replace(task, segment_seconds=segment_seconds)
    found = plan_video(task).scan
    found.diff[CUT], found.corr[CUT] = 60, 0.1
    return task, make_plan(found, segment_seconds, stateful=True)


def whole(plan: Plan, model: Model, task: VideoTask, params: Mapping[str, Any]) -> dict[int, NDArray[np.uint8]]:
    """What one call on the whole clip makes."""
    with Decoder(plan.scan, task.limits) as decoder:
        rgb = np.stack(list(decoder.frames(0, len(plan.scan))))
    batch, _ = model(FrameBatch(rgb, plan.scan.pts, np.arange(len(rgb)) == CUT), {}, params)
    layers = [batch.rgb] if batch.alpha is None else [batch.rgb, batch.alpha[..., None]]
    return dict(zip(plan.scan.pts.tolist(), np.concatenate(layers, -1), strict=True))


@pytest.mark.parametrize(("batch_frames", "segment_seconds"), [(1, 3), (3, 1), (3, 8), (8, 1), (8, 8)])
def test_any_batch_and_segment_length_gives_the_frames_of_one_call(
    clip: Path, one_call: dict[int, NDArray[np.uint8]], tmp_path: Path, batch_frames: int, segment_seconds: float
) -> None:
    task, plan = prepared(clip, tmp_path, (Step("rvm-mobilenetv3", {}, RVM_PARAMS),), segment_seconds)
    assert do_segments(task, plan, config_of(batch_frames=batch_frames)) == len(plan.scan)
    assert isinstance(task.finish, Recording)
    assert_same(task.finish.frames, one_call)


@pytest.mark.usefixtures("test_models")
def test_segment_that_is_redone_starts_from_the_stored_state(clip: Path, tmp_path: Path) -> None:
    task, plan = prepared(clip, tmp_path, (Step("trail"), Step("echo")))
    do_segments(task, plan)
    assert isinstance(task.finish, Recording)
    expected = dict(task.finish.frames)
    lost = plan.runs[0].segments[2]
    for path in task.folder.glob(f"{lost.index:05d}.*"):
        path.unlink()
    task.finish.frames.clear()
    assert do_segments(task, plan) == lost.last - lost.first
    assert_same(task.finish.frames, {pts: expected[pts] for pts in plan.scan.pts[lost.first : lost.last].tolist()})


@pytest.mark.usefixtures("test_models")
def test_state_resets_at_the_cut_and_nowhere_else(clip: Path, tmp_path: Path) -> None:
    task, plan = prepared(clip, tmp_path, (Step("trail"),), 3)
    do_segments(task, plan)
    assert isinstance(task.finish, Recording)
    trailed = list(task.finish.frames.values())
    with Decoder(plan.scan, task.limits) as decoder:
        plain = list(decoder.frames(0, len(plan.scan)))
    assert [i for i in range(len(plain)) if np.array_equal(trailed[i], plain[i])] == [0, CUT]


@pytest.mark.usefixtures("test_models")
def test_warm_up_frames_are_not_in_the_result(clip: Path, tmp_path: Path) -> None:
    task, plan = prepared(clip, tmp_path, (Step("trail"),))
    split = make_plan(plan.scan, 2, stateful=True, warmup=7)
    assert split.approximate
    do_segments(task, split, config_of(batch_frames=4))
    assert isinstance(task.finish, Recording)
    assert sorted(task.finish.frames) == plan.scan.pts.tolist()


@pytest.mark.usefixtures("test_models")
def test_failed_model_keeps_finished_segments_and_names_the_video(clip: Path, tmp_path: Path) -> None:
    task, plan = prepared(clip, tmp_path, ())
    task = replace(task, steps=(Step("trail", {}, {"raise_at": int(plan.scan.pts[20])}),))
    plan_video(task)
    with pytest.raises(ValueError, match="not to its taste"):
        do_segments(task, plan)
    done = WorkFolder(task.folder).done(plan.runs[0])
    # Those whose last batch was through before the error: what is being encoded then is not lost with it.
    assert set(done) <= {0, 1, 2}
    assert not list(task.folder.glob(".*.part"))


@pytest.mark.usefixtures("test_models")
@pytest.mark.parametrize("times", [1, 9])
def test_lane_whose_state_is_gone_with_a_node_goes_on_from_the_last_finished_segment(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    left, notes = times, list[str]()

    class Forgetful(Trail):
        """Its state is gone at one frame, so many times."""

        def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:
            nonlocal left
            if left and batch.pts[0] >= plan.scan.pts[20]:
                left -= 1
                raise LostStateError("pin far", "the state is gone")
            return super().__call__(batch, carry, params)

    task, plan = prepared(clip, tmp_path / "whole", (Step("trail"),))
    do_segments(task, plan)
    assert isinstance(task.finish, Recording)
    expected = dict(task.finish.frames)
    task, plan = prepared(clip, tmp_path / "lost", (Step("trail"),))
    monkeypatch.setitem(CARDS, "trail", replace(CARDS["trail"], load=lambda _: Forgetful()))
    work = partial(run_segments, task, plan, plan.runs[0], config_of(), on_frames=lambda _: None, on_note=notes.append)
    if times > 1:
        with pytest.raises(LostStateError, match="the state is gone"):
            work()
        assert len(notes) == config_of().troupe.batch.retries
        return
    work()
    assert notes == ["the state is gone: going on from the last finished segment"]
    assert isinstance(task.finish, Recording)
    first = plan.runs[0].segments
    assert_same(task.finish.frames, {pts: expected[pts] for pts in plan.scan.pts[: first[-1].last].tolist()})


def test_source_that_changed_after_the_plan_is_refused_by_segment(clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "b.mp4"
    copy.write_bytes(clip.read_bytes())
    task, plan = prepared(copy, tmp_path / "out", ())
    write_clip(copy, frames=RATE * SECONDS, rate=RATE + 1, width=SIZE[0], height=SIZE[1])
    with pytest.raises((MediaError, JobError), match=r"b\.mp4: segment 0 \(frames 0-5\): .*does not yield the same"):
        do_segments(task, plan)


@pytest.mark.usefixtures("test_models")
def test_lane_model_between_pins_is_refused() -> None:
    steps = (Step("pinned-trail"), Step("trail"), Step("pinned-trail-too"))
    with pytest.raises(UsageError, match="stands between models of pins"):
        Chain(steps, config_of(), lambda _: None, None)  # type: ignore[arg-type]


def test_batches_stay_under_the_configured_size(clip: Path, tmp_path: Path) -> None:
    task, plan = prepared(clip, tmp_path, ())
    seen: list[int] = []

    class Watching(Recorder):
        def compose(self, batch: FrameBatch) -> Iterator[av.VideoFrame]:
            seen.append(batch.nbytes)
            return super().compose(batch)

    @dataclass
    class Watched(Recording):
        def open(self, scan: Scan) -> Recorder:  # noqa: ARG002
            return Watching(self)

    large = replace(task, finish=Watched(size=(1024, 768)))
    run_segments(large, plan, plan.runs[0], config_of(batch_mib=7), on_frames=lambda _: None, on_note=lambda _: None)
    # Two results of 1024x768 with alpha are 6 MiB.
    assert max(n // (3 * SIZE[0] * SIZE[1]) for n in seen) == 2


def test_lane_does_not_import_torch_for_what_pins_return() -> None:
    result = Result(FrameBatch(np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, np.int64), np.zeros(1, np.bool_)), (), {})
    script = "import pickle, sys, jobs.lane; pickle.load(sys.stdin.buffer); print('torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, input=pickle.dumps(result), capture_output=True, check=True
    )
    assert ran.stdout == b"False\n"
