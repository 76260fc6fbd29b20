"""`troupe up`, `troupe down`: a Ray on this machine that outlives commands, with the pins and the HTTP service of the
configuration."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from actors.catalogue import card
from cli.manners import exit_codes
from cli.plan import local_budget
from cluster.cards import local_cards
from cluster.config import Config, load_config
from cluster.preflight import check_cpus, check_gpus, gpu_budget
from cluster.room import Room, survey
from cluster.session import connect, joins, messages_on_stderr
from cluster.standing import join_standing, standing, start, stop
from cluster.weights import default_store

Say = Callable[[str], None]
ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="By default ray-config.yaml here.")]


def up(
    config: ConfigOption = None,
    num_cpus: Annotated[int | None, typer.Option("--num-cpus", min=1, help="What a new Ray is told it has.")] = None,
    num_gpus: Annotated[int | None, typer.Option("--num-gpus", min=0, help="What a new Ray is told it has.")] = None,
) -> None:
    """Start Ray here, or join the one at RAY_ADDRESS, and bring up every pin and the HTTP service; what runs as
    configured is left alone."""
    say = _speaker()
    with exit_codes():
        found = load_config(config)
        if found.service is not None:
            from serve.places import check, resolved  # takes a while to import

            check(resolved(found), os.environ)  # before Ray takes ten seconds to start
        joined = join_standing(os.environ) or joins(os.environ)
        if not joined:
            budget = local_budget(found, gpus=num_gpus)
            if budget is not None:
                check_gpus(budget)
            os.environ["RAY_ADDRESS"] = start(os.environ, num_cpus=num_cpus, num_gpus=num_gpus).address
        try:
            _bring_up(found, say)
        except BaseException:
            if not joined:
                stop(os.environ)
            raise
    here = standing(os.environ)
    say("troupe restage joins it by itself" if here else f"RAY_ADDRESS={os.environ['RAY_ADDRESS']} joins it")


def down(config: ConfigOption = None) -> None:
    """End the Ray that `troupe up` started, with all that runs in it; in a Ray that it joined, only pins and service.

    Tasks that run go back to the queue, their finished segments kept.
    """
    say = _speaker()
    with exit_codes():
        found = load_config(config)
        if joins(os.environ):
            ended = _end(found, [pin.name for pin in found.pins])
            say(f"ended {', '.join(ended)}" if ended else "no pin was running")
            return
        if join_standing(os.environ):
            _end(found, [])  # its runners give their tasks back before their Ray is gone
        here = stop(os.environ)
        say(f"ended Ray at {here.address}" if here else "nothing is up: no Ray was started by `troupe up` here")


def _end(config: Config, pins: Sequence[str]) -> list[str]:
    """Ends the HTTP service, then these pins; returns what ran, in words."""
    with connect(), messages_on_stderr():
        from cluster.pins import delete_applications

        service = delete_applications([config.service] if config.service else [])
        ended = delete_applications(pins)
    return [*(f"HTTP service {name}" for name in service), *(f"pin {name}" for name in ended)]


def _bring_up(config: Config, say: Say) -> None:
    local_cards(os.environ)  # a sleeping card takes a second to answer: not when a refusal is waited for
    with connect() as session, messages_on_stderr():
        before = survey()
        for warning in _refuse(config, before):
            say(warning)
        device = f"{session.gpus:g} GPU" if session.gpus else "no GPU: models run on the CPU"
        say(f"Ray at {os.environ['RAY_ADDRESS']}: {session.cpus:g} CPUs, {device}")
        from actors.pin import build
        from cluster.nodes import spread_weights
        from cluster.pins import deploy_all, describe

        for line in spread_weights(_weights_here(config)):
            say(line)
        deploy_all(config.pins, build, _service_of(config))
        for pin in config.pins:
            answer = describe(pin.name, (), pin.call_timeout_s)
            say(f"pin {pin.name} {_how(pin.name, before, survey())} on {answer['device']}")
        if config.service is not None:
            where = f"http://{config.http.host}:{config.http.port}/docs"
            say(f"HTTP service {config.service} {_how(config.service, before, survey())} at {where}")


def _service_of(config: Config) -> dict[str, Any]:
    """The HTTP service's application by its name; nothing where the configuration has none."""
    if config.service is None:
        return {}
    from serve.app import build
    from serve.places import resolved, service_args

    return {config.service: build(service_args(resolved(config)))}


def _weights_here(config: Config) -> dict[Path, str]:
    """Those of the pins' checkpoints that this machine has; who lacks them all says so when a model is asked for."""
    store = default_store(os.environ)
    names = {name for pin in config.pins for model in pin.models for name in card(model).weights}
    found = [store.status(name).stored for name in sorted(names)]
    return {weight.path: weight.sha256 for weight in found if weight is not None}


def _refuse(config: Config, room: Room) -> Sequence[str]:
    """Raises RoomError when the pins do not find room beside what others hold; returns what else should be known."""
    names = [pin.name for pin in config.pins]
    service = (config.service, config.troupe.service) if config.service else None
    check_cpus(config.troupe.batch, config.pins, 0, room, service)
    budget = gpu_budget(config.pins, room, replaced=names)
    if budget is None:
        return ()
    check_gpus(budget, room.gpu_holders(without=names))
    return budget.warnings


def _how(application: str, before: Room, after: Room) -> str:
    was, runs = _processes(application, before), _processes(application, after)
    kept = f"{len(runs & was)} of {len(runs)} kept" if 0 < len(runs & was) < len(runs) else ""
    state = "runs as it did" if runs == was else kept or ("was replaced" if was else "started")
    return f"{state} (process {', '.join(map(str, sorted(runs)))})"


def _processes(application: str, room: Room) -> set[int]:
    return {holder.pid for holder in room.holders if holder.application == application and not holder.waiting}


def _speaker() -> Say:
    """Prints lines on this command's standard output, also where that of the process is moved out of Ray's way."""
    console = Console(file=sys.stdout, soft_wrap=True)
    return lambda text: console.print(text, markup=False, highlight=False)
