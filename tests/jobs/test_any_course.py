"""However a clip is cut into segments and batches, whoever does them and in whatever order: the same frames."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ray import serve as ray_serve

from actors.catalogue import CARDS
from actors.frames import FrameBatch
from actors.model import Setup, Step
from actors.pin import build
from actors.video.decode import Decoder
from actors.video.scan import Scan
from cluster.config import BatchSettings, Config, PinSettings, TroupeSettings
from cluster.pins import ensure_pins
from jobs import lane
from jobs.lane import run_segments
from jobs.ledger import WorkFolder
from jobs.plan import Plan, make_plan, plan_video
from jobs.task import VideoTask
from tests.conftest import SoakCount
from tests.jobs.inprocess import task_of
from tests.jobs.inprocess_pins import Pins
from tests.jobs.recording import Recording, assert_same
from tests.media import write_clip

FRAMES, RATE = 40, 8

#: Chains with steps of the lane before and behind those of pins, with state and without.
CHAINS = (
    ("pinned-trail",),
    ("pinned-echo",),
    ("pinned-trail", "pinned-trail-too"),
    ("pinned-echo", "pinned-trail-too"),
    ("trail", "pinned-trail", "pinned-trail-too", "trail"),
    ("echo", "pinned-echo", "trail"),
)
TRAIL, TRAIL_TOO, ECHO = "pinned-trail", "pinned-trail-too", "pinned-echo"
#: Models in pins of their own, and all in one, which does several steps in a call.
LAYOUTS = {
    "each": (PinSettings(name="a", models=(TRAIL, ECHO)), PinSettings(name="b", models=(TRAIL_TOO,))),
    "one": (PinSettings(name="a", models=(TRAIL, ECHO, TRAIL_TOO)),),
}
TWICE = PinSettings(name="test-twice", models=(TRAIL, ECHO, TRAIL_TOO), replicas=2, resident=3)


@dataclass(frozen=True)
class Course:
    """How a clip is done.

    Attributes:
        cuts: frames that may begin a shot.
        lost: segments whose files are lost after the first time, and done again; counted modulo their number.
    """

    chain: tuple[str, ...]
    layout: str
    cuts: tuple[int, ...]
    segment_seconds: float
    batch_frames: int
    window: int
    lanes: int
    replicas: int
    lost: tuple[int, ...]
    seed: int


COURSES = st.builds(
    Course,
    chain=st.sampled_from(CHAINS),
    layout=st.sampled_from(sorted(LAYOUTS)),
    cuts=st.lists(st.integers(1, FRAMES - 1), max_size=3, unique=True).map(lambda cuts: tuple(sorted(cuts))),
    segment_seconds=st.floats(0.4, FRAMES / RATE + 1),
    batch_frames=st.integers(1, FRAMES + 1),
    window=st.integers(1, 6),
    lanes=st.integers(1, 3),
    replicas=st.integers(1, 4),
    lost=st.lists(st.integers(0, 99), max_size=2).map(tuple),
    seed=st.integers(0, 2**16),
)
#: The same examples in every run, so that a failure is the change's that shows it; none are kept in files.
HYPOTHESIS: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}


@dataclass(frozen=True)
class Clip:
    """A clip that was decoded once."""

    task: VideoTask
    scan: Scan
    rgb: NDArray[np.uint8]

    def plan(self, course: Course) -> Plan:
        """The course's plan: cuts are found where it says, but for those that are too close to others."""
        diff, corr = np.zeros_like(self.scan.diff), np.ones_like(self.scan.corr)
        diff[list(course.cuts)], corr[list(course.cuts)] = 60, 0.1
        stateful = any(CARDS[model].stateful for model in course.chain)
        return make_plan(replace(self.scan, diff=diff, corr=corr), course.segment_seconds, stateful=stateful)

    def expected(self, course: Course, plan: Plan) -> dict[int, NDArray[np.uint8]]:
        """Each model once on the whole clip."""
        batch = FrameBatch(self.rgb, self.scan.pts, np.isin(np.arange(FRAMES), plan.cuts))
        for model in course.chain:
            batch, _ = CARDS[model].load(Setup(()))(batch, {}, {})
        return dict(zip(self.scan.pts.tolist(), batch.rgb, strict=True))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    folder = tmp_path_factory.mktemp("course")
    path = write_clip(folder / "a.mp4", frames=FRAMES, rate=RATE, width=64, height=48).path
    task = task_of(path, folder)
    scan = plan_video(task).scan
    with Decoder(scan, task.limits) as decoder:
        return Clip(task, scan, np.stack(list(decoder.frames(0, FRAMES))))


@pytest.fixture
def decoded(clip: Clip, monkeypatch: pytest.MonkeyPatch, test_models: None) -> None:  # noqa: ARG001 - for the test
    """Lanes have the clip's frames from memory: a decoder is a process, and there are hundreds."""

    class Memory:
        def __init__(self, scan: Scan, _: Any) -> None:
            assert scan.path == clip.scan.path

        def read_into(self, rgb: NDArray[np.uint8], first: int, last: int) -> None:
            rgb[:] = clip.rgb[first:last]

        def close(self) -> None: ...

    monkeypatch.setattr(lane, "Decoder", Memory)


def check(clip: Clip, course: Course, pins: tuple[PinSettings, ...]) -> None:
    """Does the clip on this course, loses some of it and does that again; compares the frames of both."""
    plan = clip.plan(course)
    expected = clip.expected(course, plan)
    batch = BatchSettings(
        batch_frames=course.batch_frames, window=course.window, segment_seconds=course.segment_seconds
    )
    config = Config(pins=pins, troupe=TroupeSettings(batch=batch))
    with tempfile.TemporaryDirectory() as folder:
        steps = tuple(Step(model) for model in course.chain)
        kept = Recording()
        task = replace(clip.task, root=Path(folder), steps=steps, finish=kept)
        task.folder.mkdir()
        assert done(task, plan, config, course.lanes) == FRAMES
        assert_same(dict(sorted(kept.frames.items())), expected)
        lost = [plan.segments[index] for index in sorted({k % len(plan.segments) for k in course.lost})]
        for segment in lost:
            WorkFolder(task.folder).segment_path(segment).unlink()
        kept.frames.clear()
        assert done(task, plan, config, course.lanes) == sum(segment.last - segment.first for segment in lost)
        again = [pts for segment in lost for pts in clip.scan.pts[segment.first : segment.last].tolist()]
        assert_same(dict(sorted(kept.frames.items())), {pts: expected[pts] for pts in again})


def done(task: VideoTask, plan: Plan, config: Config, lanes: int) -> int:
    """Every run, by so many lanes at once; frames that were encoded."""
    with ThreadPoolExecutor(lanes) as pool:
        work = partial(run_segments, task, plan, config=config, on_frames=_ignore, on_note=_ignore)
        return sum(pool.map(work, plan.runs))


def _ignore(_: object) -> None: ...


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("decoded", "local_ray")
def test_any_course_and_any_order_of_calls_gives_the_frames_of_one_call(
    clip: Clip, monkeypatch: pytest.MonkeyPatch, soak_count: SoakCount
) -> None:
    overtaken = 0

    @settings(max_examples=soak_count(30, 2000), phases=(Phase.explicit, Phase.generate, Phase.shrink), **HYPOTHESIS)
    @given(COURSES)
    def example(course: Course) -> None:
        nonlocal overtaken
        pins = Pins(course.seed, course.replicas)
        monkeypatch.setattr("cluster.pins.handle", pins.handle)
        check(clip, course, LAYOUTS[course.layout])
        overtaken += pins.overtaken

    example()
    assert overtaken > 0, "the order was never another one"


@pytest.fixture(scope="module")
def twice(local_ray: object) -> Iterator[None]:  # noqa: ARG001 - it must be there
    """A pin of two replicas."""
    ensure_pins([TWICE], build)
    yield
    ray_serve.delete(TWICE.name)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("decoded", "twice")
def test_any_course_on_two_replicas_gives_the_frames_of_one_call(clip: Clip, soak_count: SoakCount) -> None:
    @settings(max_examples=soak_count(4, 100), phases=(Phase.explicit, Phase.generate), **HYPOTHESIS)
    @given(COURSES)
    def example(course: Course) -> None:
        check(clip, course, (TWICE,))

    example()
