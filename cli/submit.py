"""`troupe submit`: videos to a server, and their results back."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

import typer

from actors.video.background import parse_colour
from cli import remote
from cli.watching import Awaited, Watch, follow_to_the_end
from cluster.errors import Exit, TroupeError, UsageError
from cluster.interrupts import ending_everything
from cluster.service_settings import DEFAULT_SERVER
from jobs import options
from jobs.inputs import collect, mask_of, shown
from jobs.restage import choices

if TYPE_CHECKING:
    from serve.client import Client

#: Mattes that take the mask beside a clip.
_TAKE_MASKS = (None, "auto", "given")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One video: a file or a URL, the files that go with it, and where its result goes."""

    video: Path | str
    name: str
    target: Path
    background: Path | None
    mask: Path | None


def submit(
    videos: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Videos, folders with videos, or URLs that the server fetches.")
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the results and download them.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Folder for results, with --wait: ./output.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace results that are there.")] = False,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="draft, balanced or quality; the server's choice by default.")
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="A colour ('#20405f'), a category of the server's library, or a file here."),
    ] = None,
    matte: choices.Matte = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Mask video; by default <name>.mask.<ending> beside the video.")
    ] = None,
    upscale: choices.Upscale = None,
    target: choices.TargetSize = None,
    scale: choices.Scale = None,
    as_json: options.AsJson = False,
    server: remote.Server = DEFAULT_SERVER,
    token: remote.Token = "",
    patience: remote.Patience = remote.PATIENCE,
    webhook: Annotated[
        str | None,
        typer.Option(metavar="URL", rich_help_panel=options.FINER, help="What the server tells of each task's end."),
    ] = None,
    crf: options.Crf = None,
    x264: options.X264 = None,
    denoise: choices.Denoise = None,
    max_input: choices.MaxInput = None,
    long_side: choices.LongSide = None,
    split_shots: options.SplitShots = False,
    allow_damaged: options.AllowDamaged = False,
) -> None:
    """Send videos to a Troupe server, which restages them; with --wait, wait and download the results.

    The tasks go on when this command ends, however it ends: `troupe tasks` shows them.
    """
    watch = Watch.choose(as_json=as_json)

    def work() -> int:
        choices.refuse_both(target, scale)
        if not wait and (output is not None or force):
            raise UsageError("-o and --force", "are for results, which only --wait downloads", remedy="add --wait")
        folder = output or options.DEFAULT_OUTPUT
        file, text = _background(background)
        wanted = _wanted(videos, folder, file, mask, matte)
        if wait:
            _make_room(wanted, folder, force=force)
            watch.output = folder
        said = {
            "preset": preset,
            "background": text,
            "matte": matte,
            "upscale": upscale,
            "target": target,
            "scale": scale,
            "crf": crf,
            "x264": x264,
            "denoise": denoise,
            "max_input": max_input,
            "long_side": long_side,
            "split_shots": split_shots or None,
            "allow_damaged": allow_damaged or None,
        }
        with remote.asked(server, token, patience, watch.note) as client:
            watch.server = client.server
            _submit_each(client, wanted, said, webhook, watch)
            if not wait:
                watch.note(f"{len(wanted) - len(watch.failures)} of {len(wanted)} videos submitted to {client.server}")
                return Exit.SOME_FAILED if watch.failures else Exit.DONE
            follow_to_the_end(client, watch, overwrite=force)
        return Exit.SOME_FAILED if watch.summary(len(wanted), folder.absolute()) else Exit.DONE

    carry_out(watch, work)


def carry_out(watch: Watch, work: Callable[[], int]) -> None:
    """Does the work and exits with its code; after Ctrl-C or an error it is said what goes on at the server."""
    with ending_everything(watch.interrupted):
        try:
            code = work()
        except TroupeError as error:
            watch.failed("", str(error))
            watch.left_alone()
            code = Exit.of(error)
    raise typer.Exit(code)


def _submit_each(
    client: Client, wanted: Sequence[_Wanted], said: dict[str, Any], webhook: str | None, watch: Watch
) -> None:
    """One after the other; a video that is refused does not stop the others, a request that cannot be does."""
    with watch.showing():
        for each in wanted:
            try:
                task = client.submit(
                    each.video,
                    said,
                    background=each.background,
                    mask=each.mask,
                    webhook=webhook,
                    sent=watch.moving(each.name, "sending"),
                )
            except UsageError:
                raise
            except TroupeError as error:
                if getattr(error, "status", 0) == 0:  # nobody is there, which the next video does not change
                    raise
                watch.ended_badly(each.name, str(error))
                continue
            watch.hide(each.name)
            watch.going[task.id] = Awaited(task.id, each.name, each.target)
            watch.emit("submitted", input=each.name, task=task.model_dump(mode="json"))
            if watch.mode != "json":
                watch.note(f"{task.id}  {each.name}")


def _wanted(
    videos: Sequence[str], folder: Path, background: Path | None, mask: Path | None, matte: str | None
) -> list[_Wanted]:
    from serve.client.asking import is_url

    urls = [video for video in videos if is_url(video)]
    paths = [Path(video) for video in videos if not is_url(video)]
    inputs = collect(paths, folder)[0] if paths else []
    if mask is not None and len(inputs) + len(urls) != 1:
        raise UsageError("--mask", "is the mask of one video", remedy="send videos with masks one at a time")
    found = [
        _Wanted(
            each.path,
            shown(_near(each.path)),
            each.output,
            background,
            mask or (mask_of(each.path) if matte in _TAKE_MASKS else None),
        )
        for each in inputs
    ]
    for url in urls:
        name = unquote(urlsplit(url).path).rpartition("/")[2]
        target = folder.absolute() / remote.result_name(name)
        if any(target == other.target for other in found):
            raise UsageError(url, f"would become {target} like another input", remedy="use two runs")
        found.append(_Wanted(url, name, target, background, mask))
    return found


def _near(path: Path) -> Path:
    """As seen from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _background(text: str | None) -> tuple[Path | None, str | None]:
    """A file that is sent along, or what the server knows by itself."""
    if text is None or parse_colour(text) is not None:
        return None, text
    if os.sep in text or Path(text).is_file():
        return Path(text), None
    return None, text


def _make_room(wanted: Sequence[_Wanted], folder: Path, *, force: bool) -> None:
    """The folders of the results; nothing that is there is in the way of one."""
    for each in wanted:
        if os.path.lexists(each.target) and not force:
            raise UsageError(each.target, "is there already", remedy="replace it with --force, or choose another -o")
    try:
        for needed in (folder, *(each.target.parent for each in wanted)):
            needed.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(folder, error.strerror or str(error), remedy="choose another -o") from error
