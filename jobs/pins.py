"""The pins that tasks need, and whether those that run are what the tasks expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from actors.catalogue import card
from actors.model import Step
from actors.video.beat import Beat, nothing
from cluster.config import Config, PinSettings
from cluster.errors import PinAwayError
from cluster.identity import code_hash
from jobs.task import VideoTask

#: Loading models may take longer than a call of them.
_LOAD_SECONDS = 60.0


def needed_pins(tasks: Sequence[VideoTask], config: Config) -> list[PinSettings]:
    """The pins that host the tasks' resident models, each once, in the configuration's order."""
    names = {config.pin_of(step.model).name for task in tasks for step in task.steps if card(step.model).resident}
    return [pin for pin in config.pins if pin.name in names]


def resident_steps(task: VideoTask, config: Config, pin: PinSettings) -> list[Step]:
    """The steps of a task that this pin does."""
    return [step for step in task.steps if card(step.model).resident and config.pin_of(step.model).name == pin.name]


def examine(
    pin: PinSettings, tasks: Sequence[VideoTask], config: Config, beat: Beat = nothing
) -> tuple[dict[str, Any], list[str]]:
    """Has a running pin load what the tasks need of it.

    Args:
        pin: which.
        tasks: which need it.
        config: which pin hosts what.
        beat: called about twice a second; may raise.

    Returns:
        What it says of itself, and in what it differs from what the tasks expect.

    Raises:
        PinAwayError: it does not answer.
        ClusterError: it was lost meanwhile.
        TroupeError: a model could not be loaded.
    """
    # Imported late: a job without pins needs no Serve.
    from cluster.pins import describe

    steps: dict[str, dict[str, Any]] = {}
    for task in tasks:
        for step in resident_steps(task, config, pin):
            steps.setdefault(f"{step.model} {sorted(step.load.items())}", asdict(step))
    # No more than stay loaded: the others load on first use.
    answer = describe(pin.name, list(steps.values())[: pin.resident], pin.call_timeout_s + _LOAD_SECONDS, beat)
    return answer, _differences(answer, pin, tasks)


def not_expected(pin: PinSettings, differences: Sequence[str], otherwise: str) -> PinAwayError:
    """The error of a pin that differs."""
    return PinAwayError(
        f"pin {pin.name}",
        f"is not what this job expects: {'; '.join(differences)}",
        remedy=f"deploy it again (`serve deploy ray-config.yaml`), or {otherwise}",
    )


def _differences(answer: dict[str, Any], pin: PinSettings, tasks: Sequence[VideoTask]) -> list[str]:
    differences = []
    if answer["code"] != code_hash("actors"):
        differences.append(f"code {answer['code']} against {code_hash('actors')} here")
    for key, value in pin.pixel_settings().items():
        if answer["pixels"][key] != value:
            differences.append(f"{key} {answer['pixels'][key]} against {value} in the configuration")
    for task in tasks:
        for name, digest in task.weights.items():
            there = answer["weights"].get(name)
            if there is not None and there["sha256"] != digest:
                differences.append(f"weights {name} {there['sha256'][:12]} against {digest[:12]} here")
    return sorted(set(differences))
