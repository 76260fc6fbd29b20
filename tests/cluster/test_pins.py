"""Pins that do not come up, or do not answer, are told by name with Serve's reason."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.application_state import ApplicationStatusInfo, StatusOverview
from ray.serve._private.common import DeploymentStatus, DeploymentStatusInfo, DeploymentStatusTrigger
from ray.serve.schema import ApplicationStatus

from cluster import pins
from cluster.config import PinSettings
from cluster.errors import ClusterError, PinAwayError, StoppedError, UsageError


def statuses(state: str, message: str) -> dict[str, StatusOverview]:
    deployment = DeploymentStatusInfo(
        "upscale", DeploymentStatus.UPDATING, DeploymentStatusTrigger.UNSPECIFIED, message
    )
    application = ApplicationStatusInfo(ApplicationStatus(state))
    return {"upscale": StatusOverview(application, "upscale", [deployment])}


@pytest.mark.parametrize(("state", "patience"), [("DEPLOY_FAILED", 60), ("UNHEALTHY", 0)])
def test_pin_that_fails_is_told_with_serve_s_message(
    monkeypatch: pytest.MonkeyPatch, state: str, patience: float
) -> None:
    monkeypatch.setattr(pins, "_statuses", lambda: statuses(state, "no GPU is free"))
    with pytest.raises(ClusterError, match=rf"pin upscale: did not come up \({state}\): no GPU is free"):
        pins._wait_running("upscale", time.monotonic() + patience)


def test_pin_that_never_comes_up_is_told_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "_statuses", lambda: statuses("DEPLOYING", ""))
    with pytest.raises(ClusterError, match=r"did not come up \(DEPLOYING\): no message from Serve"):
        pins._wait_running("upscale", time.monotonic())


@pytest.mark.parametrize("state", ["DEPLOYING", "UNHEALTHY"])
def test_pin_that_somebody_else_or_serve_is_bringing_up_is_awaited_and_not_replaced(
    monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    states = iter([state, state, "RUNNING"])
    monkeypatch.setattr(pins.ray_serve, "start", lambda **_: None)
    monkeypatch.setattr(pins, "_statuses", lambda: statuses(next(states), ""))
    monkeypatch.setattr(pins.ray_serve, "run_many", None)  # calling it would raise
    pin = PinSettings(name="upscale", models=("realesr-animevideov3",))
    assert pins.ensure_pins([pin], build=lambda _: pytest.fail("it was built")) == (["upscale"], [])
    assert next(states, None) is None


def answering(monkeypatch: pytest.MonkeyPatch, result: Any) -> list[str]:
    """A pin whose every answer is this error; what was cancelled."""
    cancelled: list[str] = []

    def raising(timeout_s: float) -> Any:  # noqa: ARG001
        raise result

    response = SimpleNamespace(result=raising, cancel=lambda: cancelled.append("describe"))
    monkeypatch.setattr(pins, "handle", lambda _: SimpleNamespace(describe=SimpleNamespace(remote=lambda *_: response)))
    return cancelled


def test_pin_that_does_not_answer_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, TimeoutError())
    with pytest.raises(PinAwayError, match="pin upscale: did not answer within 0 s"):
        pins.describe("upscale", (), 0)


def test_wait_for_a_pin_ends_when_somebody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled, beats = answering(monkeypatch, TimeoutError()), iter(range(3))

    def beat() -> None:
        if next(beats, None) is None:
            raise StoppedError("task", "was cancelled")

    with pytest.raises(StoppedError):
        pins.describe("upscale", (), 3600, beat)
    assert cancelled == ["describe"]


def test_error_of_the_pin_is_raised_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import RayTaskError

    cause = UsageError("pin upscale", "does not host it")
    answering(monkeypatch, RayTaskError("describe", "a remote trace", RayTaskError("inner", "another", cause)))
    with pytest.raises(UsageError) as raised:
        pins.describe("upscale", (), 5)
    assert raised.value is cause
