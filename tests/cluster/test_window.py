"""The window: results in order, state exact across pins, lost calls repeated, a model's own errors never."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from ray.exceptions import ObjectLostError

from actors.frames import FrameBatch
from actors.model import Step
from cluster import metrics
from cluster.callboard import Callboard
from cluster.errors import ClusterError, JobError, LostStateError
from cluster.pins import await_ready, describe, handle
from cluster.window import Stage, Window
from tests.cluster.test_metrics import Reported
from tests.jobs.command import wait_until
from tests.models import Trail

pytestmark = pytest.mark.usefixtures("pins")


def batches(count: int, frames: int = 3) -> list[FrameBatch]:
    """Noise; pts count frames, the state resets in the middle."""
    rng = np.random.default_rng(4)
    rgb = rng.integers(0, 256, (count * frames, 8, 6, 3), np.uint8)
    pts, cut = np.arange(count * frames), np.arange(count * frames) == count * frames // 2
    return [
        FrameBatch(rgb[a : a + frames], pts[a : a + frames], cut[a : a + frames]) for a in range(0, len(pts), frames)
    ]


def reference(source: Sequence[FrameBatch], models: int) -> list[np.ndarray]:
    """The same chain in this process, the whole clip at once."""
    whole = FrameBatch(*(np.concatenate([getattr(b, name) for b in source]) for name in ("rgb", "pts", "cut")))
    for _ in range(models):
        whole, _ = Trail()(whole, {}, {})
    return list(whole.rgb)


def stage(pin: str, model: str, params: Mapping[str, Any] | None = None, *, stateful: bool = True) -> Stage:
    steps = [asdict(Step(model, {}, params or {}))]
    return Stage(
        pin,
        lambda source, state, call: handle(pin).run.remote(steps, source, state, call),
        stateful,
        partial(await_ready, pin),
    )


class Counted:
    """Strikes in memory; work is given up at the second."""

    def __init__(self) -> None:
        self.charged: list[str] = []
        self.reasons: list[str] = []

    def suspect(self, key: str) -> bool:
        return key in self.charged

    def charge(self, key: str, reason: str) -> None:
        self.charged.append(key)
        self.reasons.append(reason)
        if self.charged.count(key) == 2:
            raise JobError(key, reason)


def window(stages: Sequence[Stage], on_retry: Callable[[str], None], **more: Any) -> Window:
    settings: dict[str, Any] = {"size": 3, "timeout_s": 60, "retries": 2, "strikes": Counted(), **more}
    return Window(stages, [None] * len(stages), on_retry=on_retry, **settings)


def through(calls: Window, source: Sequence[FrameBatch]) -> list[np.ndarray]:
    """All frames in the order in which the window yields them."""
    frames: list[np.ndarray] = []
    for batch in source:
        if calls.full:
            frames.extend(calls.pop().batch.rgb)
        calls.push(batch, f"from {batch.pts[0]}")
    while len(calls):
        frames.extend(calls.pop().batch.rgb)
    return frames


def refuse(reason: str) -> None:
    raise AssertionError(f"repeated: {reason}")


def test_two_stateful_pins_give_the_frames_of_one_process_in_order() -> None:
    source = batches(12)
    calls = window([stage("test-first", "pinned-trail"), stage("test-second", "pinned-trail-too")], refuse)
    np.testing.assert_array_equal(through(calls, source), reference(source, 2))
    # The states after the last batch, as a segment's end stores them.
    after = [result.carries[0]["trail"] for result in calls.popped()]
    np.testing.assert_array_equal(after, [reference(source, 1)[-1], reference(source, 2)[-1]])


@pytest.mark.parametrize("dying", [0, 1])
def test_replica_that_dies_midway_changes_nothing_and_is_reported(dying: int, tmp_path: Path) -> None:
    source, told = batches(12), list[str]()
    misbehaviour = {"die_at": 16, "once": str(tmp_path / f"died-{dying}")}
    stages = [
        stage("test-first", "pinned-trail", misbehaviour if dying == 0 else None),
        stage("test-second", "pinned-trail-too", misbehaviour if dying == 1 else None),
    ]
    np.testing.assert_array_equal(through(window(stages, told.append), source), reference(source, 2))
    assert (tmp_path / f"died-{dying}").exists()
    assert told
    assert all("test-first or test-second: lost, repeating" in reason for reason in told)


def test_error_of_a_model_is_raised_as_itself_and_never_repeated() -> None:
    calls = window([stage("test-first", "pinned-trail", {"raise_at": 4})], refuse)
    with pytest.raises(ValueError, match="frame at 4 is not to its taste"):
        through(calls, batches(3))
    calls.cancel()


def test_error_of_an_earlier_pin_is_the_error_of_the_chain() -> None:
    calls = window(
        [stage("test-first", "pinned-trail", {"raise_at": 4}), stage("test-second", "pinned-trail-too")], refuse
    )
    with pytest.raises(ValueError, match="frame at 4 is not to its taste"):
        through(calls, batches(3))
    calls.cancel()


def test_work_that_a_pin_dies_of_is_charged_alone_and_given_up_after_its_last_strike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported = Reported()
    monkeypatch.setattr(metrics, "_reported", reported)
    told = list[str]()
    strikes = Counted()
    calls = window([stage("test-first", "pinned-trail", {"die_at": 3})], told.append, strikes=strikes)
    with pytest.raises(JobError, match="from 3: pin test-first was lost while it executed it"):
        through(calls, batches(3))
    # Not those before and behind it, whose calls died with it the first time.
    assert strikes.charged == ["from 3"] * 2
    assert len(told) == 1
    assert list(reported.of("troupe_pin_strikes").values()) == [2]
    assert list(reported.of("troupe_pin_calls_retried").values()) >= [1]


def test_replica_that_loses_cuda_is_replaced_and_the_strike_says_so(tmp_path: Path) -> None:
    source, told, strikes = batches(6), list[str](), Counted()
    misbehaviour = {"lose_at": 4, "once": str(tmp_path / "lost")}
    calls = window([stage("test-first", "pinned-trail", misbehaviour)], told.append, strikes=strikes)
    np.testing.assert_array_equal(through(calls, source), reference(source, 1))
    assert strikes.charged == ["from 3"]
    assert strikes.reasons == [
        "pin test-first was lost while it executed it: CUDA is lost to its process "
        "(CUDA error: an illegal memory access was encountered)"
    ]
    assert len(told) == 1


def test_state_that_is_gone_with_its_node_is_told_at_once() -> None:
    class Answer:
        """What a handle gives; its value is on a node that goes."""

        gone = False

        def result(self, timeout_s: float) -> str:  # noqa: ARG002 - it is there, or gone
            if Answer.gone:
                raise ObjectLostError("0" * 56, None, "")
            return "frames"

        def cancel(self) -> None:
            pass

    calls = window([Stage("far", lambda *_: cast(Any, Answer()), True, lambda: None)], refuse)
    calls.push("batch 0", "a")
    assert calls.pop() == "frames"
    calls.push("batch 1", "a")
    Answer.gone = True
    with pytest.raises(LostStateError, match="pin far: the state before the next frames is gone with a node"):
        calls.pop()


def test_answer_that_does_not_come_from_a_pin_that_does_not_tell_is_given_up_after_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehaviour = {"sleep_at": 0, "seconds": 3, "once": str(tmp_path / "slept")}
    monkeypatch.setattr(Callboard, "states", lambda _: {})  # no pin says that it lives
    calls = window([stage("test-first", "pinned-trail", misbehaviour)], refuse, retries=0, timeout_s=0.5)
    with pytest.raises(ClusterError, match="pin test-first: no answer in time, 1 times in a row"):
        through(calls, batches(1))


def test_answer_of_a_pin_that_lives_is_awaited_however_long_its_queue_is(tmp_path: Path) -> None:
    wait_until(lambda: "test-first" in {state["pin"] for state in Callboard().states().values()}, "the pin to tell")
    slow = {"sleep_at": 0, "seconds": 2, "once": str(tmp_path / "slept")}
    calls = window([stage("test-first", "pinned-echo", slow, stateful=False)], refuse, timeout_s=0.2)
    assert len(through(calls, batches(2))) == 6


def test_answer_of_pins_that_have_nothing_to_do_is_taken_for_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        """A call that never arrived anywhere."""

        def result(self, timeout_s: float) -> Any:  # noqa: ARG002
            raise TimeoutError

        def cancel(self) -> None: ...

    class Answered(Silent):
        def result(self, timeout_s: float) -> Any:  # noqa: ARG002
            return "frames"

    wait_until(lambda: "test-first" in {state["pin"] for state in Callboard().states().values()}, "the pin to tell")
    monkeypatch.setattr("cluster.window._IDLE_SECONDS", 1.0)
    sent = list[str]()

    def call(source: Any, _: Any, __: Any) -> Any:
        sent.append(source)
        return Silent() if len(sent) == 1 else Answered()

    told = list[str]()
    calls = window([Stage("test-first", call, True, lambda: None)], told.append)
    calls.push("batch", "")
    assert calls.pop() == "frames"
    assert told == ["pin test-first: no answer in time, repeating 1 calls"]


def test_cancelled_calls_that_wait_in_the_pin_never_run(tmp_path: Path) -> None:
    before = describe("test-first", [], 60)
    slow = {"sleep_at": 0, "seconds": 1, "once": str(tmp_path / "slept")}
    calls = window([stage("test-first", "pinned-echo", slow, stateful=False)], refuse, size=3)
    for batch in batches(3):
        calls.push(batch, "")
    wait_until((tmp_path / "slept").exists, "the first call to run")
    calls.cancel()
    after = describe("test-first", [], 60)
    assert after["pid"] == before["pid"]
    assert after["calls"] - before["calls"] <= 1


def test_stateless_calls_do_not_wait_for_each_other_s_state() -> None:
    source = batches(4)
    calls = window([stage("test-first", "pinned-echo", stateful=False)], refuse)
    np.testing.assert_array_equal(through(calls, source), [255 - frame for b in source for frame in b.rgb])
