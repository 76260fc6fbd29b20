"""Performing a list of video tasks on Ray: connect, check that it fits, have the pins up, run the batch."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.catalogue import card
from cluster.budget import replicas_of
from cluster.callboard import Callboard
from cluster.cards import local_cards
from cluster.config import Config, PinSettings, lane_count
from cluster.nodes import check_shared, spread_weights
from cluster.preflight import check_room, gpu_budget
from cluster.room import survey
from cluster.session import Session, connect, messages_on_stderr
from cluster.weights import default_store
from jobs.batch import Batch, Outcome, warm_workers
from jobs.display import Display
from jobs.metering import metering
from jobs.pins import examine, needed_pins, not_expected, resident_steps
from jobs.progress import Reporter
from jobs.task import VideoTask

if TYPE_CHECKING:
    from ray.serve import Application


def perform(tasks: Sequence[VideoTask], config: Config, display: Display, *, allow_skew: bool) -> list[Outcome]:
    """Does all tasks on the Ray at RAY_ADDRESS, or on a local one that ends with the job.

    Args:
        tasks: videos that are not finished yet; the caller holds the output folder's lock.
        config: pins, lanes, windows.
        display: shows what happens.
        allow_skew: go on when a running pin's code, weights or settings differ from this process's.

    Returns:
        How each video ended, in the order of ending.

    Raises:
        ClusterError: it does not fit, a pin does not come up, or a pin is not what this job expects.
    """
    outcomes: list[Outcome] = []
    local_cards(os.environ)  # a sleeping card takes a second to answer: not when a refusal is waited for
    with connect() as session, messages_on_stderr():
        pins = needed_pins(tasks, config)
        replicas = max((replicas_of(pin, int(session.gpus)) for pin in pins), default=1)
        lanes = lane_count(config.troupe.batch, session.cpus, replicas)
        display.note(_what_runs(session, lanes, pins))
        room = survey()
        starting = [pin for pin in pins if pin.name not in room.replicas]
        budget = gpu_budget(starting, room)
        check_room(session, config.troupe.batch, pins, lanes, room, budget)
        for warning in budget.warnings if budget else ():
            display.note(warning)
        # A task's files travel by name alone: on one machine there is nothing to find out.
        check_shared(tasks[0].root, [path for task in tasks for path in _inputs(task)])
        reporter = Reporter.start()
        if pins:
            warm_workers(lanes + 1)
            skew = _raise_pins(pins, tasks, config, display, allow_skew=allow_skew)
            tasks = [replace(task, notices=_notices(task, config, skew)) for task in tasks]
            display.paused_pins = partial(_held, Callboard(), {pin.name for pin in pins})

        def ended(outcome: Outcome) -> None:
            outcomes.append(outcome)
            display.ended(outcome)

        with display.following(reporter, tasks), metering(reporter, len(tasks), tasks[0].root.parent):
            Batch(config, lanes, reporter, ended, allow_skew=allow_skew).run(tasks)
    return outcomes


def _inputs(task: VideoTask) -> list[Path]:
    return [task.source, *(path for path, _ in task.companions.values()), *task.finish.files]


def _raise_pins(
    pins: Sequence[PinSettings], tasks: Sequence[VideoTask], config: Config, display: Display, *, allow_skew: bool
) -> dict[str, list[str]]:
    """Has the pins up with their models loaded; returns in what each differs from what the job expects."""
    # Imported late: a job without pins does not need Serve.
    from cluster.pins import ensure_pins

    store = default_store(os.environ)
    files = {store.find(name).path: digest for task in tasks for name, digest in task.weights.items()}

    for line in spread_weights(files):
        display.note(line)
    skew = {}
    found, deployed = ensure_pins(pins, _build)
    for pin in pins:
        answer, differences = examine(pin, tasks, config)
        models = ", ".join(sorted({step.model for task in tasks for step in resident_steps(task, config, pin)}))
        state = "was running" if pin.name in found else "started"
        display.note(f"pin {pin.name} {state} (process {answer['pid']}, {answer['device']}): {models}")
        if differences and not allow_skew:
            raise not_expected(pin, differences, "pass --allow-skew to go on")
        skew[pin.name] = [f"pin {pin.name}: {difference} (--allow-skew)" for difference in differences]
        for notice in skew[pin.name]:
            display.note(notice)
    if deployed and not found:
        display.note("pins are up")
    return skew


def _build(settings: dict[str, Any]) -> Application:
    # Imported late: torch takes seconds, and pins that run are not built.
    from actors.pin import build

    return build(settings)


def _held(board: Callboard, pins: Collection[str]) -> dict[str, str]:
    """Those of the pins that hold batch calls, and why."""
    return {state["pin"]: state["held"] for state in board.states().values() if state["held"] and state["pin"] in pins}


def _notices(task: VideoTask, config: Config, skew: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The task's own and those of the pins that it uses."""
    used = dict.fromkeys(config.pin_of(step.model).name for step in task.steps if card(step.model).resident)
    return (*task.notices, *(notice for pin in used for notice in skew[pin]))


def _what_runs(session: Session, lanes: int, pins: Sequence[PinSettings]) -> str:
    where = "joined the Ray cluster" if session.joined else "started a local Ray"
    device = f"{session.gpus:g} GPU" if session.gpus else "no GPU: models run on the CPU"
    return f"{where}: {session.cpus:g} CPUs, {device}; {lanes} lane{'s' * (lanes > 1)}" + (
        "" if pins else ", no pins needed"
    )
