"""The command `troupe demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli.manners import exit_codes
from cluster.errors import Exit, UsageError

_NEXT = """
  troupe restage CLIPS/ --preset draft --background '#20405f' -o output/
        green-screen clips of your own; needs no weights, and no GPU
  troupe weights fetch realesr-animevideov3 rvm-mobilenetv3
  troupe restage CLIPS/ --preset balanced --background FILE -o output/
        people before any background, enlarged by a network
  troupe doctor
        what this machine has, and what it lacks"""


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the demo's files.")] = Path("demo"),
) -> None:
    """Draw a green-screen clip and a stage, and restage the one on the other: no weights, no network, no GPU needed."""
    # These bring OpenCV, PyAV and Arrow along; `troupe --help` must not wait for them.
    from cli.demo.clip import write_clip
    from cli.demo.stage import write_stage
    from jobs.restage.command import restage

    console = Console(highlight=False, soft_wrap=True)
    folder = output.absolute()
    clip, stage, results = folder / "dancer.mp4", folder / "stage.mp4", folder / "restaged"
    with exit_codes():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(folder, error.strerror or str(error), remedy="choose another -o") from error
        for path, write, what in (
            (clip, write_clip, "a dancer before a green screen"),
            (stage, write_stage, "a stage"),
        ):
            if not path.is_file():
                console.print(f"drawing {what} …", markup=False)
                write(path)
    try:
        restage([clip], output=results, preset="draft", background=str(stage), preview=True)
    except typer.Exit as ended:
        if ended.exit_code != Exit.DONE:
            raise
    console.print(
        f"\nThe result:    {results / clip.name}\n"
        f"Before/after:  {results / clip.with_suffix('.jpg').name}\n"
        f"Made from:     {clip}\n"
        f"               {stage}\n\n"
        f"Next (in this shell first: . .venv/bin/activate):{_NEXT}",
        markup=False,
    )
