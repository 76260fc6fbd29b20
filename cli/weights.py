"""`troupe weights`: list, fetch, verify and import checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from actors.catalogue import weights_of_models
from cli.manners import exit_codes, print_json, say_error
from cluster.errors import Exit, UsageError, WeightsError
from cluster.filehash import HashMemory
from cluster.weights import State, Status, StoredWeight, WeightsStore, cache_folder, default_folder

app = typer.Typer(help="List, fetch, verify and import model weights.", no_args_is_help=True)

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of the weights; by default $TROUPE_WEIGHTS, else in the user's cache."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace another file that is in the way.")]

_ROOM_FOR_PURPOSE = 120  # columns; below that the purposes would fold into a dozen lines each
_COLOURS = {
    State.OFFICIAL: "green",
    State.UNVERIFIED: "yellow",
    State.UNOFFICIAL: "yellow",
    State.MISSING: "dim",
    State.DAMAGED: "red",
}


@app.command("list")
def list_weights(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show every registered checkpoint: whether it is there, its size and its licence."""
    with exit_codes():
        opened = _open(store)
        _show(opened, opened.list(), as_json)


@app.command("fetch")
def fetch_weights(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="As `troupe weights list` shows.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Fetch every checkpoint that a model uses.")] = False,
    mirror: Annotated[
        str | None,
        typer.Option(
            envvar="TROUPE_WEIGHTS_MIRROR",
            help="Ask this mirror instead: an address before which the whole URL goes, or one with {url} or with "
            "{path} (what follows https://github.com/) in it.",
        ),
    ] = None,
    accepted: Annotated[
        list[str] | None,
        typer.Option("--accept-licence", metavar="NAME", help="Accept a licence that forbids commercial use."),
    ] = None,
    force: ForceOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download checkpoints, going on where an earlier download stopped, and check them."""
    with exit_codes():
        opened = _open(store)
        if bool(names) == everything:
            raise UsageError("weights fetch", "give either names or --all", remedy="see `troupe weights list`")
        wanted = list(dict.fromkeys(names or weights_of_models()))
        for name in wanted:
            note_licence(opened, name)
        fetched, failed = _fetch_each(opened, wanted, mirror, accepted or [], force, quiet=as_json)
        if as_json:
            print_json({"fetched": [_stored_json(weight) for weight in fetched], "failed": failed})
        else:
            for weight in fetched:
                print(f"{weight.name}: {weight.path}{_doubt(opened, weight)}")
        if failed:
            raise typer.Exit(Exit.SOME_FAILED)


@app.command("verify")
def verify_weights(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Read every stored checkpoint again and compare its hash; exit code 1 if one is damaged."""
    with exit_codes():
        opened = _open(store)
        statuses = opened.verify()
        _show(opened, statuses, as_json)
        if any(status.state is State.DAMAGED for status in statuses):
            raise typer.Exit(Exit.SOME_FAILED)


@app.command("import")
def import_weights(
    file: Annotated[Path, typer.Argument(help="A checkpoint on this machine; it is copied.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Which checkpoint it is, if neither hash nor file name says so.")
    ] = None,
    force: ForceOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a local checkpoint into the store and record its hash when it is not the official one."""
    with exit_codes():
        opened = _open(store)
        weight = opened.import_file(file, name, force=force)
        note_licence(opened, weight.name)
        if as_json:
            print_json(_stored_json(weight))
        else:
            print(f"{weight.name}: {weight.path}{_doubt(opened, weight) or ' (official)'}")


def note_licence(store: WeightsStore, name: str) -> None:
    """Says on stderr what is unsettled about a checkpoint's licence, or that it forbids commercial use."""
    licence = store.registry[name].licence
    if licence.settled and licence.commercial:
        return
    forbids = "" if licence.commercial else f"{licence.spdx} forbids commercial use: "
    Console(stderr=True, soft_wrap=True).print(f"{name}: {forbids}{licence.note}", markup=False, highlight=False)


def _doubt(store: WeightsStore, weight: StoredWeight) -> str:
    if weight.official:
        return ""
    if store.registry[weight.name].sha256 is None:
        return f" (unverified: nobody published its sha256; {weight.sha256} is what it is checked against from now on)"
    return f" (unofficial, sha256 {weight.sha256})"


def _open(folder: Path | None) -> WeightsStore:
    return WeightsStore(folder or default_folder(os.environ), HashMemory(cache_folder(os.environ) / "hashes.json"))


def _fetch_each(
    store: WeightsStore,
    names: Sequence[str],
    mirror: str | None,
    accepted: Sequence[str],
    force: bool,
    *,
    quiet: bool,
) -> tuple[list[StoredWeight], dict[str, str]]:
    """One after the other, so that one that fails does not stop the rest."""
    fetched: list[StoredWeight] = []
    failed: dict[str, str] = {}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name)
            bars.update(tasks[name], completed=done, total=total)

        for name in names:
            try:
                fetched += store.fetch([name], mirror=mirror, accepted=accepted, force=force, progress=advance)
            except WeightsError as error:
                failed[name] = str(error)
                say_error(error)
    return fetched, failed


def _show(store: WeightsStore, statuses: Sequence[Status], as_json: bool) -> None:
    if as_json:
        print_json({"store": str(store.folder), "weights": [_status_json(status) for status in statuses]})
        return
    console = Console()
    used = weights_of_models()
    for title, group in (
        (f"weights in {store.folder}", [status for status in statuses if status.entry.name in used]),
        ("of networks that no model uses yet", [status for status in statuses if status.entry.name not in used]),
    ):
        if group:
            console.print(_table(title, group, wide=console.width >= _ROOM_FOR_PURPOSE))
    for line in _notes(statuses):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(title: str, statuses: Sequence[Status], *, wide: bool) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for heading in ("name", "state", "size", "licence"):
        table.add_column(heading, no_wrap=True)
    if wide:
        table.add_column("purpose")
    for status in statuses:
        size = status.stored.path.stat().st_size if status.stored else status.entry.bytes
        cells: list[str | Text] = [
            status.entry.name,
            Text(status.state, style=_COLOURS[status.state]),
            "?" if size is None else f"{size / 1e6:.1f} MB",
            str(status.entry.licence),
            status.entry.purpose,
        ]
        table.add_row(*cells[: len(table.columns)])
    return table


def _notes(statuses: Sequence[Status]) -> Iterator[str]:
    """What the tables have no room for."""
    for status in statuses:
        if status.state not in (State.OFFICIAL, State.MISSING):
            yield f"{status.entry.name}: {status.detail}"
    missing = [status.entry for status in statuses if status.state is State.MISSING]
    if by_hand := [entry.name for entry in missing if entry.by_hand]:
        yield f"only a browser gets {', '.join(by_hand)}: `troupe weights fetch NAME` says how"
    if unknown := [entry.name for entry in missing if entry.urls and entry.sha256 is None]:
        yield f"nobody published the sha256 of {', '.join(unknown)}: what comes first is remembered and checked against"
    for note in dict.fromkeys(s.entry.licence.note for s in statuses if not s.entry.licence.settled):
        yield f"unsettled: {note}"
    if forbidding := sorted({s.entry.licence.spdx for s in statuses if not s.entry.licence.commercial}):
        yield f"non-commercial: {', '.join(forbidding)}; fetched with --accept-licence NAME"


def _status_json(status: Status) -> dict[str, Any]:
    stored = status.stored
    return status.entry.model_dump(mode="json") | {
        "state": str(status.state),
        "detail": status.detail,
        "path": str(stored.path) if stored else None,
        "stored_sha256": stored.sha256 if stored else None,
    }


def _stored_json(weight: StoredWeight) -> dict[str, Any]:
    return {
        "name": weight.name,
        "path": str(weight.path),
        "sha256": weight.sha256,
        "official": weight.official,
    }
