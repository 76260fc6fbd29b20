"""`troupe plan`: what the pins take of the GPU, whether it fits, and what would make it fit. Starts nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.manners import exit_codes, print_json
from cluster.budget import Budget, make_budget, replicas_of
from cluster.cards import Card, local_cards
from cluster.config import Config, lane_count, load_config
from cluster.errors import Exit, RoomError
from cluster.preflight import check_cpus
from cluster.profiles import figures_for, read_profile, shipped_profile
from cluster.room import Room
from cluster.tables import budget_lines, budget_values


def plan(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="By default ray-config.yaml here.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=0, help="Plan for so many GPUs instead of those that are here.")
    ] = None,
    card: Annotated[
        str | None,
        typer.Option("--card", metavar="NAME", help="Plan for this card: a profiled one, or with --memory any."),
    ] = None,
    memory: Annotated[
        int | None, typer.Option("--memory", metavar="MIB", min=1, help="Memory of the card in MiB.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Show what the pins take of the GPU and whether it fits; exit code 1 if it does not. Starts nothing."""
    with exit_codes():
        found = load_config(config)
        budget = local_budget(found, gpus=gpus, card=card, memory_mib=memory)
        problem = _cpu_problem(found, 0 if budget is None else budget.gpus)
    fits = problem is None and (budget is None or budget.fits)
    if as_json:
        values = None if budget is None else budget_values(budget)
        print_json({"fits": fits, "gpu": values, "cpu_problem": None if problem is None else str(problem)})
    else:
        print("\n".join(_lines(budget)))
        if problem is not None:
            print(problem)
    raise typer.Exit(Exit.DONE if fits else Exit.SOME_FAILED)


def local_budget(
    config: Config, *, gpus: int | None = None, card: str | None = None, memory_mib: int | None = None
) -> Budget | None:
    """The budget of all pins on this machine's cards, or on others that are named; None without a GPU.

    Raises:
        UsageError: the profile of the card is damaged.
    """
    cards = local_cards(os.environ)
    count = len(cards) if gpus is None and card is None and memory_mib is None else gpus if gpus is not None else 1
    if count == 0:
        return None
    here = min(cards, key=lambda each: each.total_mib) if cards else None
    chosen, assumed = _chosen(here, card, memory_mib)
    used = here.used_mib if here is not None and chosen == here else 0
    figures = figures_for(chosen.name, os.environ)
    return make_budget(config.pins, chosen, figures, free=(1.0,) * count, assumed=assumed, used_mib=used)


def _chosen(here: Card | None, name: str | None, memory_mib: int | None) -> tuple[Card, bool]:
    if name is None and memory_mib is None and here is not None:
        return here, False
    known = read_profile(os.environ, name) if name is not None else None
    shipped = known or shipped_profile()
    assumed = memory_mib is None and known is None and name != shipped.device
    return Card(name or (here.name if here else shipped.device), memory_mib or shipped.total_mib), assumed


def _cpu_problem(config: Config, gpus: int) -> RoomError | None:
    """Why all pins and a job's lanes do not fit on this machine's CPUs, as Ray counts them."""
    cpus = os.cpu_count() or 1
    lanes = lane_count(config.troupe.batch, cpus, max((replicas_of(pin, gpus) for pin in config.pins), default=1))
    try:
        check_cpus(config.troupe.batch, config.pins, lanes, Room(cpus={"here": cpus}, gpus={"here": gpus}))
    except RoomError as error:
        return error
    return None


def _lines(budget: Budget | None) -> list[str]:
    if budget is None:
        return ["no NVIDIA GPU here: pins run on the CPU (`--gpus 1` plans for the reference card)"]
    return budget_lines(budget)
