"""`troupe models`: what can be chosen with --upscale and --matte."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.catalogue import CARDS
from actors.model import Card
from cli.manners import exit_codes, print_json
from cluster.weights import State, WeightsStore, default_store

_WIDE = 130  # columns; below that the summaries would fold into a dozen lines each


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False) -> None:
    """List the models: what for, where they run, whether their weights are here, and the licences of these."""
    with exit_codes():
        store = default_store(os.environ)
        rows = [_row(card, store) for card in CARDS.values()]
    if as_json:
        print_json(rows)
        return
    console = Console()
    for family in dict.fromkeys(row["family"] for row in rows):
        console.print(_table(family, [row for row in rows if row["family"] == family], wide=console.width >= _WIDE))
    missing = sorted({name for row in rows for name in row["missing"]})
    if missing:
        console.print(f"missing weights: troupe weights fetch {' '.join(missing)}", markup=False, soft_wrap=True)
    console.print("--upscale also takes lanczos, --matte also auto and none: no weights either", markup=False)


def _table(family: str, rows: Sequence[dict[str, Any]], *, wide: bool) -> Table:
    table = Table(title=f"--{family}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("model", "scale", "runs in", "weights", "licence"):
        table.add_column(heading, no_wrap=True)
    if wide:
        table.add_column("what for")
    for row in rows:
        state = Text(row["state"], style="dim" if row["missing"] else "")
        scale = f"x{row['scale']}" if row["scale"] > 1 else ""
        cells = (row["name"], scale, row["runs_in"], state, row["licence"], row["summary"])
        table.add_row(*cells[: len(table.columns)])
    return table


def _row(card: Card, store: WeightsStore) -> dict[str, Any]:
    states = {name: store.status(name).state for name in card.weights}
    missing = [name for name, state in states.items() if state in (State.MISSING, State.DAMAGED)]
    return {
        "name": card.name,
        "family": card.family,
        "scale": card.scale,
        "runs_in": "pin" if card.resident else "lane",
        "stateful": card.stateful,
        "weights": {name: str(state) for name, state in states.items()},
        "missing": missing,
        "state": ", ".join(sorted({str(state) for state in states.values()})) or "none needed",
        "licence": ", ".join(sorted({str(store.registry[name].licence) for name in card.weights})),
        "summary": card.summary,
    }
