"""The command: `troupe restage …`, and `python -m jobs.restage …` inside a submitted Ray job."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from actors.video.background import parse_colour
from cluster.config import load_config
from cluster.errors import Exit
from cluster.weights import default_store
from jobs import options
from jobs.backgrounds import Library, open_once
from jobs.command import (
    carry_out,
    choose_encoder,
    exit_with,
    gather,
    look_at,
    require_absolute,
    require_weights,
    with_lanes,
)
from jobs.display import Display
from jobs.limits import limits_of
from jobs.restage import choices
from jobs.restage.dry_run import show_plan
from jobs.restage.ingest import Ingest
from jobs.restage.settings import resolve


def restage(
    paths: options.Paths,
    output: options.Output = options.DEFAULT_OUTPUT,
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="draft (no weights needed), balanced or quality.")
    ] = "balanced",
    background: Annotated[
        str | None, typer.Option(metavar="WHAT", help="A colour ('#20405f'), a file, or a category of the library.")
    ] = None,
    matte: choices.Matte = None,
    upscale: choices.Upscale = None,
    target: choices.TargetSize = None,
    scale: choices.Scale = None,
    preview: options.Preview = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.AsJson = False,
    crf: options.Crf = None,
    x264: options.X264 = None,
    denoise: choices.Denoise = None,
    max_input: choices.MaxInput = None,
    long_side: choices.LongSide = None,
    config: options.ConfigFile = None,
    library: options.LibraryFolder = options.DEFAULT_LIBRARY,
    lanes: options.Lanes = None,
    split_shots: options.SplitShots = False,
    allow_damaged: options.AllowDamaged = False,
    allow_unlicensed: options.AllowUnlicensed = False,
    allow_skew: options.AllowSkew = False,
) -> None:
    """Upscale clips, cut the person out, set them before a new background, keep the sound."""
    display = Display.choose(as_json=as_json)

    def work() -> int:
        choices.refuse_both(target, scale)
        configured = with_lanes(load_config(config), lanes)
        settings = resolve(
            configured,
            preset,
            upscale=upscale,
            target=target if scale is None else str(scale),
            matte=matte,
            background=background,
            crf=crf,
            x264=x264,
            denoise=denoise,
            max_input=max_input,
            long_side=long_side,
        )
        if background is None and settings.background is not None:
            display.note(f"no --background: the preset's, {settings.background}")
        require_absolute([*paths, output, *_background_paths(background, library)])
        inputs = gather(paths, output, display)
        ingest = Ingest(
            settings=settings,
            config=configured,
            root=output.absolute() / ".troupe",
            store=default_store(os.environ),
            library=Library(library.absolute(), partial(open_once, limits=limits_of(configured))),
            encoder=choose_encoder(configured.troupe.encode, settings.crf, settings.x264, display.note),
            allow_damaged=allow_damaged,
            split_shots=split_shots,
            allow_unlicensed=allow_unlicensed,
        )
        ingest.check_background()
        looked = look_at(inputs, ingest.look, display)
        missing = ingest.missing_weights({look.matte for _, look in looked})
        if dry_run:
            show_plan(ingest, looked, missing, display)
            display.note("nothing was started (--dry-run)")
            return Exit.SOME_FAILED if display.failures else Exit.DONE
        require_weights(missing, "use --preset draft, which needs none")
        carry_out(
            [(item, partial(ingest.task, item, look)) for item, look in looked],
            ingest.root,
            ingest.store,
            configured,
            display,
            force=force,
            preview=preview,
            allow_skew=allow_skew,
        )
        return Exit.SOME_FAILED if display.summary(len(inputs), output.absolute()) else Exit.DONE

    exit_with(display, work)


def _background_paths(background: str | None, library: Path) -> list[Path]:
    """The path that a background is read from: its own, or the library's for a category."""
    if background is None or parse_colour(background) is not None:
        return []
    return [Path(background) if os.sep in background else library]


def main() -> None:
    """Entry point of `python -m jobs.restage`."""
    typer.run(restage)
