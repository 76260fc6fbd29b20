"""The command: `troupe restage …`, and `python -m jobs.restage …` inside a submitted Ray job."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from actors.video.background import parse_colour
from actors.video.encode import EncoderSettings, probe_nvenc
from actors.video.scan import Inspection
from cluster.config import Config, EncodeSettings, load_config
from cluster.errors import TroupeError, UsageError, WeightsError
from cluster.interrupts import EXIT_INTERRUPTED, ending_everything, held_back
from cluster.session import is_submitted_job, use_token
from cluster.weights import default_store
from jobs.backgrounds import DEFAULT_ROOT, Library, open_once
from jobs.display import Display
from jobs.inputs import Input, collect
from jobs.ledger import WorkFolder, output_lock, read_row
from jobs.limits import limits_of
from jobs.restage.dry_run import show_plan
from jobs.restage.ingest import Ingest
from jobs.restage.settings import RestageSettings, resolve
from jobs.task import VideoTask

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

#: NVENC has presets of its own; p5 is its "slow, good quality".
_NVENC_PRESET = "p5"
_LOOKERS = 2
#: Headings of the help, below the options that most runs use.
_FINER, _ALLOW = "Finer choices", "What is refused otherwise"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beside the restaging's own choices."""

    allow_damaged: bool
    allow_skew: bool
    allow_unlicensed: bool
    split_shots: bool
    force: bool
    dry_run: bool
    preview: bool


def restage(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Video files, or folders that are searched through.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder for results.")] = Path(
        "output"
    ),
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="draft (no weights needed), balanced or quality.")
    ] = "balanced",
    background: Annotated[
        str | None, typer.Option(metavar="WHAT", help="A colour ('#20405f'), a file, or a category of the library.")
    ] = None,
    matte: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="auto, none, given, chroma, selfie, rvm-mobilenetv3, rvm-resnet50."),
    ] = None,
    upscale: Annotated[
        str | None, typer.Option(metavar="MODEL", help="lanczos or a Real-ESRGAN model (`troupe models`).")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="SIZE", help="720p, 1080p, 1440p, 4k (the short side) or WxH.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(metavar="FACTOR", help="A factor instead of --target.", min=0.01)
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Write a contact sheet, source beside result.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and start nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Do finished videos again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")] = False,
    crf: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=_FINER, help="Constant quality 0..51, lower is better.", min=0, max=51
        ),
    ] = None,
    x264: Annotated[
        str | None, typer.Option(metavar="NAME", rich_help_panel=_FINER, help="x264's preset, ultrafast … veryslow.")
    ] = None,
    denoise: Annotated[
        float | None,
        typer.Option(
            metavar="X", rich_help_panel=_FINER, help="Strength 0..1, realesr-general-x4v3 only.", min=0, max=1
        ),
    ] = None,
    max_input: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", rich_help_panel=_FINER, help="Reduce to this short side before upscaling.", min=16
        ),
    ] = None,
    long_side: Annotated[
        int | None, typer.Option(metavar="PIXELS", rich_help_panel=_FINER, help="Long side that RVM looks at.", min=64)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=_FINER, help="Configuration; ./ray-config.yaml if there is one."),
    ] = None,
    library: Annotated[
        Path, typer.Option(metavar="FOLDER", rich_help_panel=_FINER, help="The background library.")
    ] = DEFAULT_ROOT,
    lanes: Annotated[
        int | None,
        typer.Option(metavar="N", rich_help_panel=_FINER, help="Lanes at work, instead of the configuration's.", min=1),
    ] = None,
    split_shots: Annotated[
        bool,
        typer.Option(
            "--split-shots",
            rich_help_panel=_FINER,
            help="Start segments inside shots with warm-up frames: parallel, approximate.",
        ),
    ] = False,
    allow_damaged: Annotated[
        bool,
        typer.Option("--allow-damaged", rich_help_panel=_ALLOW, help="Finish damaged files and count their damage."),
    ] = False,
    allow_unlicensed: Annotated[
        bool,
        typer.Option(
            "--allow-unlicensed", rich_help_panel=_ALLOW, help="Take background items without source and licence."
        ),
    ] = False,
    allow_skew: Annotated[
        bool,
        typer.Option(
            "--allow-skew", rich_help_panel=_ALLOW, help="Use running pins of other code, weights or settings."
        ),
    ] = False,
) -> None:
    """Upscale clips, cut the person out, set them before a new background, keep the sound."""
    display = Display.choose(as_json=as_json)
    options = Options(allow_damaged, allow_skew, allow_unlicensed, split_shots, force, dry_run, preview)
    try:
        settings_of = load_config(config)
        if lanes is not None:
            settings_of = _with_lanes(settings_of, lanes)
        if target is not None and scale is not None:
            raise UsageError("--target and --scale", "contradict each other", remedy="give one of them")
        settings = resolve(
            settings_of,
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
        _require_absolute(paths, output, library, background)
        code = _restage(paths, output.absolute(), library.absolute(), settings, settings_of, options, display)
    except TroupeError as error:
        display.failed("", str(error))
        code = EXIT_USAGE if isinstance(error, UsageError | WeightsError) else EXIT_FAILED
    except KeyboardInterrupt:
        display.interrupted()
        code = EXIT_INTERRUPTED
    raise typer.Exit(code)


def _restage(
    paths: Sequence[Path],
    output: Path,
    library: Path,
    settings: RestageSettings,
    config: Config,
    options: Options,
    display: Display,
) -> int:
    inputs, passed = collect(paths, output)
    if passed:
        display.note(f"passed over {len(passed)} files that are no videos by name: {', '.join(p.name for p in passed)}")
    root = output / ".troupe"
    ingest = Ingest(
        settings=settings,
        config=config,
        root=root,
        store=default_store(os.environ),
        library=Library(library, partial(open_once, limits=limits_of(config))),
        encoder=_encoder(settings, config.troupe.encode, display),
        allow_damaged=options.allow_damaged,
        split_shots=options.split_shots,
        allow_unlicensed=options.allow_unlicensed,
    )
    looked = _look(ingest, inputs, display)
    missing = ingest.missing_weights({matte for _, _, matte in looked})
    if missing and not options.dry_run:
        raise WeightsError(
            "weights",
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not here and nothing is downloaded unasked",
            remedy=f"run `troupe weights fetch {' '.join(missing)}`, or use --preset draft, which needs none",
        )
    if options.dry_run:
        show_plan(ingest, looked, missing, display)
        display.note("nothing was started (--dry-run)")
        return EXIT_FAILED if display.failures else EXIT_DONE
    with output_lock(root):
        tasks = []
        for item, found, matte in looked:
            try:
                tasks.append(ingest.task(item, found, matte))
            except TroupeError as error:
                display.failed(str(item.path), str(error))
        for name in ingest.unofficial_weights(tasks):
            display.note(f"weights {name}: not the official file (`troupe weights list`)")
        todo = _unfinished(tasks, options, display)
        if todo:
            use_token(os.environ)
            with held_back():
                from jobs.perform import perform  # imports Ray, which reads the token's mode at that moment

            with ending_everything(display.interrupted):
                perform(todo, config, display, allow_skew=options.allow_skew)
    if options.preview:
        _preview(tasks, config, display)
    return EXIT_FAILED if display.summary(len(inputs), output) else EXIT_DONE


def _look(ingest: Ingest, inputs: Sequence[Input], display: Display) -> list[tuple[Input, Inspection, str]]:
    """First looks at all inputs, a few at a time; refused ones are shown."""
    looked = []
    pool = ThreadPoolExecutor(_LOOKERS)
    try:
        for item, future in [(item, pool.submit(ingest.look, item)) for item in inputs]:
            try:
                found, matte = future.result()
            except TroupeError as error:
                display.failed(str(item.path), str(error))
            else:
                looked.append((item, found, matte))
    finally:
        # An interrupt must not wait for looks that have not begun.
        pool.shutdown(cancel_futures=True)
    return looked


def _unfinished(tasks: Sequence[VideoTask], options: Options, display: Display) -> list[VideoTask]:
    """Tasks without a finished output; `--force` forgets what was done."""
    todo = []
    for task in tasks:
        row = read_row(task.root, task.fingerprint)
        finished = row is not None and row["status"] == "done" and task.output.is_file()
        if options.force:
            WorkFolder(task.folder).remove_segments()
        elif finished and row is not None and task.output.stat().st_size == row["output_bytes"]:
            display.note(f"{task.source.name}: finished before, skipped (--force does it again)")
            # A kill between the row and the cleaning up leaves segments that nobody would look at again.
            WorkFolder(task.folder).remove_segments()
            continue
        todo.append(task)
    return todo


def _preview(tasks: Sequence[VideoTask], config: Config, display: Display) -> None:
    from jobs.preview import write_sheet

    for task in tasks:
        if task.output.is_file():
            display.note(f"contact sheet: {write_sheet(task, limits_of(config))}")


def _encoder(settings: RestageSettings, encode: EncodeSettings, display: Display) -> EncoderSettings:
    """Decides the codec once for the whole run."""
    codec = encode.codec
    if codec != "x264":
        problem = probe_nvenc()
        if problem is None:
            codec = "nvenc"
        elif codec == "nvenc":
            raise UsageError(
                "codec nvenc", f"does not encode here: {problem}", remedy="set troupe.encode.codec to x264"
            )
        else:
            codec = "x264"
            display.note(f"NVENC does not encode here ({problem}): x264 does")
    if codec == "nvenc":
        return EncoderSettings("nvenc", settings.crf, _NVENC_PRESET, encode.threads, encode.gop_seconds)
    return EncoderSettings("x264", settings.crf, settings.x264, encode.threads, encode.gop_seconds)


def _require_absolute(paths: Sequence[Path], output: Path, library: Path, background: str | None) -> None:
    """In a submitted job the working folder is a temporary copy on the cluster: relative paths would get lost there."""
    if not is_submitted_job(os.environ):
        return
    named = [*paths, output]
    if background is not None and parse_colour(background) is None:
        named.append(Path(background) if os.sep in background else library)
    for path in named:
        if not path.is_absolute():
            raise UsageError(
                path,
                "is relative, and a submitted job runs in a temporary folder of the cluster",
                remedy="give an absolute path that every node sees",
            )


def _with_lanes(config: Config, lanes: int) -> Config:
    batch = config.troupe.batch.model_copy(update={"lanes": lanes})
    return config.model_copy(update={"troupe": config.troupe.model_copy(update={"batch": batch})})


def main() -> None:
    """Entry point of `python -m jobs.restage`."""
    typer.run(restage)
