"""Plans: runs are whole shots, segments short enough, times the truth; the plan of an earlier start is used again."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from actors.model import Step
from actors.video.limits import Limits
from actors.video.scan import Scan, scan
from cluster.errors import MediaError
from jobs.plan import Plan, make_plan, plan_video
from tests.jobs.inprocess import task_of
from tests.media import write_clip

RATE = 25


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    folder = tmp_path_factory.mktemp("plan")
    return scan(write_clip(folder / "a.mp4", frames=5, width=64, height=48).path, Limits(), workdir=folder)


def video(found: Scan, seconds: float, cuts: tuple[float, ...] = (), pts: list[int] | None = None) -> Scan:
    """A scan of a clip at 25 frames a second (or with these times in ticks) with cuts at these seconds."""
    per_frame = int(1 / found.info.time_base) // RATE
    ticks = np.array(pts if pts is not None else [i * per_frame for i in range(round(seconds * RATE))], np.int64)
    diff, corr = np.ones(len(ticks), np.float32), np.ones(len(ticks), np.float32)
    for cut in cuts:
        index = int(np.searchsorted(ticks * float(found.info.time_base), cut - 1e-6))
        diff[index], corr[index] = 60, 0.1
    return replace(found, pts=ticks, diff=diff, corr=corr, last_duration=per_frame)


def bounds(plan: Plan) -> list[int]:
    return [plan.runs[0].segments[0].first, *(run.segments[-1].last for run in plan.runs)]


def assert_covers(plan: Plan) -> None:
    """Segments follow each other from the first frame to the last, numbered through."""
    segments = plan.segments
    assert [segment.index for segment in segments] == list(range(len(segments)))
    assert segments[0].first == 0
    assert segments[-1].last == len(plan.scan)
    assert all(a.last == b.first and a.first < a.last for a, b in pairwise(segments))


@pytest.mark.parametrize(("seconds", "most"), [(60, 8), (8, 8), (8.04, 8), (1, 8), (59.96, 3), (0.04, 1)])
def test_segments_are_at_most_so_many_seconds(found: Scan, seconds: float, most: float) -> None:
    for stateful in (False, True):
        plan = make_plan(video(found, seconds), most, stateful=stateful)
        assert_covers(plan)
        lengths = [(segment.last - segment.first) / RATE for segment in plan.segments]
        assert max(lengths) <= most + 1 / RATE
        assert len(lengths) <= np.ceil(seconds / most)


def test_with_a_stateful_model_runs_are_whole_shots(found: Scan) -> None:
    plan = make_plan(video(found, 300, cuts=(50, 120, 121, 260)), 8, stateful=True)
    assert plan.cuts.tolist() == [50 * RATE, 120 * RATE, 121 * RATE, 260 * RATE]
    assert bounds(plan) == [0, 50 * RATE, 120 * RATE, 260 * RATE, 300 * RATE]
    assert not plan.approximate


def test_short_shots_are_joined_into_runs_of_several_segments(found: Scan) -> None:
    cuts = tuple(range(3, 100, 3))
    plan = make_plan(video(found, 100, cuts=cuts), 8, stateful=True)
    assert_covers(plan)
    assert set(bounds(plan)[1:-1]) <= set(plan.cuts.tolist())
    assert all(b - a >= 4 * 8 * RATE for a, b in pairwise(bounds(plan)))
    assert len(plan.runs) > 1


def test_one_endless_shot_is_one_run_for_a_stateful_model(found: Scan) -> None:
    assert len(make_plan(video(found, 300), 8, stateful=True).runs) == 1


def test_without_a_stateful_model_runs_begin_anywhere(found: Scan) -> None:
    plan = make_plan(video(found, 300), 8, stateful=False)
    assert_covers(plan)
    assert len(plan.runs) == 10
    assert not plan.approximate
    assert all(segment.warmup == 0 for segment in plan.segments)


def test_split_shots_warms_up_inside_shots_and_is_called_approximate(found: Scan) -> None:
    plan = make_plan(video(found, 40, cuts=(16.2,)), 8, stateful=True, warmup=16)
    assert_covers(plan)
    assert len(plan.runs) == len(plan.segments) == 5
    warm = {segment.first: segment.warmup for segment in plan.segments}
    # 16.2 s is frame 405: what starts after the cut must not warm up on the shot before it.
    assert warm == {0: 0, 200: 16, 400: 16, 600: 16, 800: 16}
    near = make_plan(video(found, 40, cuts=(15.8,)), 8, stateful=True, warmup=16)
    assert {segment.first: segment.warmup for segment in near.segments}[400] == 5
    assert plan.approximate


def test_split_shots_is_exact_where_nothing_carries_state_or_segments_start_at_cuts(found: Scan) -> None:
    assert not make_plan(video(found, 40), 8, stateful=False, warmup=16).approximate
    assert not make_plan(video(found, 16, cuts=(8,)), 8, stateful=True, warmup=16).approximate


def test_segments_of_a_variable_rate_are_cut_by_time(found: Scan) -> None:
    second = int(1 / found.info.time_base)
    ticks = [i * second // 100 for i in range(500)] + [5 * second + i * second // 10 for i in range(50)]
    plan = make_plan(video(found, 10, pts=ticks), 20, stateful=False)
    assert len(plan.segments) == 1
    plan = make_plan(video(found, 10, pts=ticks), 5, stateful=False)
    assert_covers(plan)
    starts = [ticks[segment.first] / second for segment in plan.segments] + [10.0]
    assert max(b - a for a, b in pairwise(starts)) <= 5.1


def test_stored_plan_is_used_again_without_decoding(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=40, width=64, height=48)
    task = task_of(clip.path, tmp_path / "out")
    first = plan_video(task)
    clip.path.write_bytes(b"no video")
    again = plan_video(task)
    assert again.segments == first.segments
    assert [p * again.scan.info.time_base for p in again.scan.pts.tolist()] == clip.seconds


def test_mask_with_other_times_is_refused_by_name(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=20, width=64, height=48)
    write_clip(tmp_path / "a.mask.mkv", frames=19, width=64, height=48, codec="ffv1")
    task = task_of(clip.path, tmp_path / "out", matte="given", background="red")
    with pytest.raises(MediaError, match=r"a\.mask\.mkv: has other times than a\.mp4 \(19 frames against 20\)"):
        plan_video(task)


def test_mask_with_the_same_times_is_accepted(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=20, width=64, height=48)
    write_clip(tmp_path / "a.mask.mov", frames=20, width=64, height=48, time_base=Fraction(1, 30))
    task = task_of(clip.path, tmp_path / "out", matte="given", background="red")
    assert [step.model for step in task.steps] == ["given"]
    assert len(plan_video(task).scan) == 20


@pytest.mark.usefixtures("test_models")
def test_a_stateful_step_keeps_shots_whole(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=40, width=64, height=48, rate=5)
    free = task_of(clip.path, tmp_path / "out")
    bound = replace(free, steps=(Step("trail"),))
    assert len(plan_video(free).runs) == 2
    assert len(plan_video(bound).runs) == 1
