"""What every job's command does beside its own choices: look, refuse, skip what is finished, perform, exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

import typer

from actors.video.encode import EncoderSettings, probe_nvenc
from cluster.config import Config, EncodeSettings
from cluster.errors import Exit, MediaError, TroupeError, UsageError
from cluster.interrupts import ending_everything
from cluster.session import check_ray_version, is_submitted_job, use_token
from cluster.standing import join_standing
from cluster.weights import WeightsStore
from jobs.display import Display
from jobs.inputs import Input, check_name, collect, shown
from jobs.ledger import WorkFolder, forget_row, output_lock, read_row, remove_partials
from jobs.limits import limits_of
from jobs.task import Command, VideoTask

T = TypeVar("T")

#: NVENC has presets of its own; p5 is its "slow, good quality".
_NVENC_PRESET = "p5"
_LOOKERS = 2


def exit_with(display: Display, work: Callable[[], int]) -> NoReturn:
    """Does the work and exits with its code, or with that of the error that ended it.

    Ctrl-C ends this process and all that it started, at any moment: nothing here needs more than a SIGKILL leaves.
    """
    with ending_everything(display.interrupted):
        try:
            check_ray_version()
            code = work()
        except TroupeError as error:
            display.failed("", str(error))
            code = Exit.of(error)
    raise typer.Exit(code)


def require_absolute(paths: Iterable[Path]) -> None:
    """Raises UsageError for a relative path in a submitted job, which runs in a temporary copy on the cluster."""
    if not is_submitted_job(os.environ):
        return
    for path in paths:
        if not path.is_absolute():
            raise UsageError(
                path,
                "is relative, and a submitted job runs in a temporary folder of the cluster",
                remedy="give an absolute path that every node sees",
            )


def require_weights(missing: Sequence[str], otherwise: str) -> None:
    """Raises UsageError with the command that fetches them, and what can be done without."""
    if missing:
        raise UsageError(
            "weights",
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not here and nothing is downloaded unasked",
            remedy=f"run `troupe weights fetch {' '.join(missing)}`, or {otherwise}",
        )


def with_lanes(config: Config, lanes: int | None) -> Config:
    """The configuration with that many lanes; None changes nothing."""
    if lanes is None:
        return config
    batch = config.troupe.batch.model_copy(update={"lanes": lanes})
    return config.model_copy(update={"troupe": config.troupe.model_copy(update={"batch": batch})})


def choose_encoder(encode: EncodeSettings, crf: int, x264: str, note: Callable[[str], None]) -> EncoderSettings:
    """Decides the codec once for a whole job, by encoding a frame.

    Args:
        encode: as configured.
        crf: constant quality.
        x264: x264's preset.
        note: is told when NVENC was wanted if possible, and is not.

    Raises:
        UsageError: NVENC is demanded and does not encode here.
    """
    codec = encode.codec
    if codec != "x264":
        problem = probe_nvenc()
        if problem is None:
            return EncoderSettings("nvenc", crf, _NVENC_PRESET, encode.threads, encode.gop_seconds)
        if codec == "nvenc":
            raise UsageError(
                "codec nvenc", f"does not encode here: {problem}", remedy="set troupe.encode.codec to x264"
            )
        note(f"NVENC does not encode here ({problem}): x264 does")
    return EncoderSettings("x264", crf, x264, encode.threads, encode.gop_seconds)


def gather(paths: Sequence[Path], output: Path, display: Display) -> list[Input]:
    """The inputs that these paths name; says what was passed over.

    Raises:
        UsageError: a path does not exist, or there is nothing to do.
    """
    if shown(output) != str(output):
        raise UsageError(shown(output), "its name is not UTF-8", remedy="choose another -o")
    inputs, passed = collect(paths, output)
    if passed:
        names = ", ".join(shown(Path(path.name)) for path in passed)
        display.note(f"passed over {len(passed)} files that are no videos by name: {names}")
    return inputs


def look_at(inputs: Sequence[Input], look: Callable[[Input], T], display: Display) -> list[tuple[Input, T]]:
    """First looks at all inputs, a few at a time; refused ones are shown and left out."""
    looked = []
    pool = ThreadPoolExecutor(_LOOKERS)
    try:
        for item, future in [(item, pool.submit(_look, item, look)) for item in inputs]:
            try:
                looked.append((item, future.result()))
            except (TroupeError, OSError) as error:
                _refuse(item, error, display)
    finally:
        pool.shutdown(cancel_futures=True)
    return looked


def _refuse(item: Input, error: TroupeError | OSError, display: Display) -> None:
    if isinstance(error, OSError):
        error = MediaError(shown(Path(item.path.name)), f"cannot be read: {error.strerror or error}")
    display.failed(shown(item.path), str(error))


def _look(item: Input, look: Callable[[Input], T]) -> T:
    check_name(item.path)
    return look(item)


def carry_out(
    wanted: Iterable[tuple[Input, Callable[[], VideoTask]]],
    root: Path,
    store: WeightsStore,
    config: Config,
    display: Display,
    *,
    force: bool,
    preview: bool,
    allow_skew: bool,
) -> None:
    """Makes the tasks and does those that are not finished; what fails is shown and does not stop the others.

    Args:
        wanted: inputs, each with what makes its task.
        root: the output folder's `.troupe`, locked meanwhile.
        store: the weights store that the tasks use.
        config: pins, lanes, limits.
        display: is told everything.
        force: do finished videos again.
        preview: write a contact sheet beside every output.
        allow_skew: use running pins of other code, weights or settings.

    Raises:
        TroupeError: nothing could be started.
    """
    # `troupe restage …` and `python -m jobs.restage …` are the same command.
    arguments = sys.argv[1:] if Path(sys.argv[0]).name == "__main__.py" else sys.argv[2:]
    command = Command(tuple(arguments), str(Path.cwd()))
    with output_lock(root):
        tasks = []
        for item, make in wanted:
            try:
                tasks.append(replace(make(), command=command))
            except (TroupeError, OSError) as error:
                _refuse(item, error, display)
        used = {name for task in tasks for name in task.weights}
        for name in sorted(name for name in used if not store.find(name).official):
            display.note(f"weights {name}: not the official file (`troupe weights list`)")
        remove_partials(root, [task.output for task in tasks])
        todo = unfinished(tasks, display, force=force)
        done = {task.fingerprint for task in tasks} - {task.fingerprint for task in todo}
        if todo:
            join_standing(os.environ)
            use_token(os.environ)
            from jobs.perform import perform  # imports Ray, which reads the token's mode at that moment

            outcomes = perform(todo, config, display, allow_skew=allow_skew)
            done |= {outcome.task.fingerprint for outcome in outcomes if outcome.status == "done"}
        if preview:
            _preview([task for task in tasks if task.fingerprint in done], config, display)


def unfinished(tasks: Sequence[VideoTask], display: Display, *, force: bool) -> list[VideoTask]:
    """Tasks without a finished output; `force` first forgets what was done, once for all of them."""
    if force:
        display.note("every video is done again; to go on after an interruption, leave --force away")
        for task in tasks:
            forget_row(task.root, task.fingerprint)
            WorkFolder(task.folder).remove_segments()
    todo = []
    for task in tasks:
        row = read_row(task.root, task.fingerprint)
        if row is not None and row["status"] == "done" and _size(task.output) == row["output_bytes"]:
            display.note(f"{task.source.name}: finished before, skipped (--force does it again)")
            # A kill between the row and the cleaning up leaves segments that nobody would look at again.
            WorkFolder(task.folder).remove_segments()
        else:
            todo.append(task)
    return todo


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _preview(tasks: Sequence[VideoTask], config: Config, display: Display) -> None:
    from jobs.preview import write_sheet

    for task in tasks:
        try:
            display.note(f"contact sheet: {write_sheet(task, limits_of(config))}")
        except TroupeError as error:
            display.note(f"{task.source.name}: no contact sheet: {error}")
