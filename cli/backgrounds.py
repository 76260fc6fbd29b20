"""`troupe backgrounds`: add to the library, list it, make loops."""

from __future__ import annotations

import re
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.video.limits import Limits
from cli.manners import exit_codes, print_json
from cluster.config import load_config
from cluster.errors import UsageError
from jobs.backgrounds import DEFAULT_ROOT, Library, Listed, open_once
from jobs.limits import limits_of

app = typer.Typer(help="The library of backgrounds: add, list, make seamless loops.", no_args_is_help=True)

LibraryOption = Annotated[Path, typer.Option("--library", help="Folder of the library.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command("add")
def add_background(
    category: Annotated[str, typer.Argument(help="popular, classic, folk, fitness, taichi, or a folder of your own.")],
    file: Annotated[Path, typer.Argument(help="An image or a video; it is copied.")],
    source: Annotated[str | None, typer.Option("--source", help="Where it comes from: an address, a person.")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="Its terms, e.g. CC0-1.0 or CC-BY-4.0.")
    ] = None,
    allow_unlicensed: Annotated[
        bool, typer.Option("--allow-unlicensed", help="Add it without source and licence.")
    ] = False,
    library: LibraryOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Copy an image or a video into a category, with its source and licence."""
    with exit_codes():
        added = _open(library).add(category, file, source=source, licence=licence, allow_unlicensed=allow_unlicensed)
        if as_json:
            print_json(_json(added))
        else:
            print(added.path)


@app.command("list")
def list_backgrounds(
    category: Annotated[str | None, typer.Argument(help="Only this category.")] = None,
    library: LibraryOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Show what is in the library, with sources and licences."""
    with exit_codes():
        opened = _open(library)
        wanted = opened.categories() if category is None else (category,)
        found = {name: opened.list(name) for name in wanted}
        if as_json:
            print_json({name: [_json(listed) for listed in items] for name, items in found.items()})
            return
        table = Table(title=f"backgrounds in {opened.root}", title_justify="left", box=SIMPLE_HEAD)
        for heading in ("category", "file", "licence", "source"):
            table.add_column(heading, overflow="fold")
        for name, items in found.items():
            for listed in items:
                cells = (Text(listed.item.file), _known(listed.item.licence), _known(listed.item.source))
                table.add_row(name, *cells)
            if not items:
                table.add_row(name, Text("empty", style="dim"))
        Console().print(table)


@app.command("loop")
def loop_background(
    source: Annotated[Path, typer.Argument(help="A video, or a still image, which becomes a clip.")],
    target: Annotated[Path, typer.Argument(help="The .mp4 to write.")],
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", min=0.5, help="Longest loop; by default all of a video. A still image needs it."),
    ] = None,
    fade: Annotated[
        float, typer.Option("--fade", min=0.0, help="Seconds of the end that are cross-faded into the beginning.")
    ] = 1.0,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT to cover; by default the source's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace TARGET.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a loop without a seam: its end is cross-faded into its beginning."""
    with exit_codes():
        if target.suffix.lower() != ".mp4":
            raise UsageError(target, "a loop is written as .mp4", remedy="give a name that ends in .mp4")
        if target.exists() and not force:
            raise UsageError(target, "is there already", remedy="add --force to replace it")
        if not source.is_file():
            raise UsageError(source, "not a file")
        if not target.absolute().parent.is_dir():
            raise UsageError(target.parent, "not a folder", remedy="make it first")
        from actors.video.loop import make_loop

        made = make_loop(source, target, seconds=seconds, fade_seconds=fade, size=_size(size), limits=_limits())
        if as_json:
            print_json(asdict(made) | {"path": str(made.path)})
        else:
            print(f"{made.path}: {made.width}x{made.height}, {made.seconds:.2f} s, {made.blended} frames blended")


def _open(root: Path) -> Library:
    return Library(root, partial(open_once, limits=_limits()))


def _limits() -> Limits:
    return limits_of(load_config())


def _known(text: str | None) -> Text:
    return Text(text) if text else Text("unknown", style="yellow")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    if match is None:
        raise UsageError(f"--size {text}", "is not WIDTHxHEIGHT", remedy="e.g. --size 1920x1080")
    width, height = int(match[1]), int(match[2])
    if width % 2 or height % 2:
        raise UsageError(f"--size {text}", "is odd", remedy="give an even width and height")
    return width, height


def _json(listed: Listed) -> dict[str, object]:
    item = listed.item
    return {
        "category": listed.category,
        "path": str(listed.path),
        "source": item.source,
        "licence": item.licence,
        "sha256": item.sha256,
        "listed": listed.listed,
    }
