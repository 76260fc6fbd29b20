"""Pins: they say what they are, load once, keep the models used last, and give the bits of the model itself."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.catalogue import card
from actors.frames import FrameBatch
from actors.model import Setup, Step
from actors.pin import build
from cluster.errors import ClusterError, TroupeError, UsageError, WeightsError
from cluster.identity import code_hash
from cluster.pins import describe, ensure_pins, handle
from cluster.session import Session
from cluster.weights import WeightsStore
from tests.pins import DENOISE, FIRST, RVM, UPSCALE


@pytest.fixture(scope="module")
def pin(pins: None) -> str:  # noqa: ARG001 - it must be there
    return FIRST.name


def step(model: str, load: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    return asdict(Step(model, load or {}, params))


def ask(pin: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return describe(pin, steps, 60)


def frames(count: int = 3) -> FrameBatch:
    rgb = np.random.default_rng(1).integers(0, 256, (count, 32, 48, 3), np.uint8)
    return FrameBatch(rgb, np.arange(count), np.zeros(count, np.bool_))


def test_describe_says_what_the_pin_is(pin: str, tiny_weights: Path) -> None:
    answer = ask(pin, step(UPSCALE))
    assert answer["device"] == "cpu"
    assert answer["code"] == code_hash("actors")
    assert answer["settings"] == FIRST.model_dump()
    assert answer["pixels"] == {"dtype": "auto", "micro_batch": 4, "tile": 0}
    assert UPSCALE in answer["models"]
    found = answer["weights"][UPSCALE]
    stored = WeightsStore(tiny_weights).find(UPSCALE)
    assert (found["sha256"], found["official"]) == (stored.sha256, False)
    assert Path(f"/proc/{answer['pid']}").exists()


def test_model_is_loaded_once_however_often_it_is_asked_for(pin: str) -> None:
    first = ask(pin, step(UPSCALE))
    for _ in range(3):
        handle(pin).run.remote([step(UPSCALE, size=[48, 32])], frames(), None).result(timeout_s=60)
    again = ask(pin, step(UPSCALE))
    assert (again["pid"], again["loads"]) == (first["pid"], first["loads"])
    assert again["calls"] == first["calls"] + 3


def test_model_used_least_recently_makes_room(pin: str) -> None:
    ask(pin, step(UPSCALE), step("pinned-echo"), step(UPSCALE))
    assert ask(pin, step(RVM))["models"] == [UPSCALE, RVM]
    loads = ask(pin)["loads"]
    answer = ask(pin, step("pinned-echo"))
    assert answer["models"] == [RVM, "pinned-echo"]
    assert answer["loads"] == loads + 1
    assert set(answer["weights"]) == {RVM}


def test_variants_of_a_model_are_resident_apart(pin: str) -> None:
    soft, strong = (step(DENOISE, {"denoise": value}, size=[48, 32]) for value in (0.0, 1.0))
    loads = ask(pin)["loads"]
    results = [handle(pin).run.remote([each], frames(), None).result(timeout_s=60) for each in (soft, strong, soft)]
    assert ask(pin)["loads"] == loads + 2
    assert np.array_equal(results[0].batch.rgb, results[2].batch.rgb)
    assert not np.array_equal(results[0].batch.rgb, results[1].batch.rgb)


def test_chain_in_a_pin_equals_the_models_in_this_process(pin: str, tiny_weights: Path) -> None:
    batch, params = frames(), {"size": [96, 64], "max_input": None}
    chain = [step(UPSCALE, **params), step(RVM, long_side=64)]
    result = handle(pin).run.remote(chain, batch, None).result(timeout_s=60)
    expected = batch
    for model, choices in ((UPSCALE, params), (RVM, {"long_side": 64})):
        paths = tuple(WeightsStore(tiny_weights).find(name).path for name in card(model).weights)
        expected, state = card(model).load(Setup(paths))(expected, {}, choices)
    np.testing.assert_array_equal(result.batch.rgb, expected.rgb)
    np.testing.assert_array_equal(result.batch.alpha, expected.alpha)
    assert set(result.seconds) == {UPSCALE, RVM}
    assert result.carries[0] == {}
    np.testing.assert_array_equal(result.carries[1]["r4"], state["r4"])


def test_missing_weights_are_told_with_the_command(pin: str) -> None:
    with pytest.raises(WeightsError, match="troupe weights fetch realesrgan-x4plus"):
        ask(pin, step("realesrgan-x4plus"))


def test_model_that_the_pin_does_not_host_is_refused(pin: str) -> None:
    with pytest.raises(UsageError, match="pin test-first: does not host pinned-trail-too"):
        ask(pin, step("pinned-trail-too"))
    with pytest.raises(TroupeError, match="does not host pinned-trail-too"):
        handle(pin).run.remote([step("pinned-trail-too")], frames(), None).result(timeout_s=60)


def test_pin_asks_for_no_gpu_where_there_is_none_and_says_so(
    local_ray: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert local_ray.gpus == 0
    told: list[str] = []
    monkeypatch.setattr(logging.getLogger("ray.serve"), "warning", lambda text, *values: told.append(text % values))
    options = build(FIRST.model_copy(update={"num_gpus": 0.4}).model_dump())._bound_deployment.ray_actor_options
    assert (options["num_gpus"], options["num_cpus"]) == (0, FIRST.num_cpus)
    assert told == ["pin test-first: no GPU in this cluster, its models run on the CPU"]


def test_pin_that_is_found_running_is_not_deployed_again(pin: str) -> None:
    before = ask(pin)
    assert ensure_pins([FIRST], build) == ([FIRST.name], [])
    assert ask(pin)["pid"] == before["pid"]


def test_handle_of_a_pin_that_is_not_there_says_so(local_ray: Session) -> None:  # noqa: ARG001
    with pytest.raises(ClusterError, match="pin nobody: is not deployed"):
        handle("nobody")
