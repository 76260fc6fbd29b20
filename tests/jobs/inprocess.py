"""A whole restaging in this process, without Ray: plan, every run's segments, assembly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.video.encode import EncoderSettings
from cluster.config import BatchSettings, Config, GovernorSettings, TroupeSettings
from cluster.weights import WeightsStore
from jobs.assemble import assemble
from jobs.backgrounds import Library
from jobs.command import choose_encoder
from jobs.inputs import Input
from jobs.lane import run_segments
from jobs.plan import Plan, plan_video
from jobs.restage.ingest import Ingest
from jobs.restage.settings import resolve
from jobs.task import VideoTask

FAST = EncoderSettings("x264", 18, "ultrafast", 1, 2)


def config_of(**batch: Any) -> Config:
    """The default configuration with other batch settings; segments of one second unless told otherwise.

    However full the disk is, lanes do not wait for room.
    """
    troupe = TroupeSettings(
        batch=BatchSettings(**{"segment_seconds": 1, **batch}), governor=GovernorSettings(min_free_gib=0)
    )
    return Config(troupe=troupe)


def ingest_of(
    output: Path,
    config: Config | None = None,
    *,
    store: Path | None = None,
    allow_damaged: bool = False,
    split_shots: bool = False,
    preset: str = "",
    **chosen: Any,
) -> Ingest:
    """An `Ingest` for an output folder: of a preset and encoded as configured, or without one as fast as can be: preset
    `draft` at the source's size, nobody cut out unless told otherwise."""
    config = config or config_of()
    if not preset:
        chosen = {"target": "1", "matte": "none", **chosen}
    settings = resolve(config, preset or "draft", **chosen)
    encoder = choose_encoder(config.troupe.encode, settings.crf, settings.x264, _ignore) if preset else FAST
    return Ingest(
        settings=settings,
        config=config,
        root=output / ".troupe",
        store=WeightsStore(store or output / "no-weights"),
        library=Library(output / "no-library", lambda path: path),  # type: ignore[arg-type, return-value]
        encoder=encoder,
        allow_damaged=allow_damaged,
        split_shots=split_shots,
    )


def task_of(source: Path, output: Path, config: Config | None = None, **chosen: Any) -> VideoTask:
    """The task of one clip; `chosen` as in `ingest_of`."""
    ingest = ingest_of(output, config, **chosen)
    item = Input(source, output / f"{source.name}.mp4")
    return ingest.task(item, ingest.look(item))


def do_segments(task: VideoTask, plan: Plan, config: Config | None = None) -> int:
    """Every run of the plan; returns the frames that were encoded now."""
    return sum(
        run_segments(task, plan, run, config or config_of(), on_frames=_ignore, on_note=_ignore) for run in plan.runs
    )


def restage(
    source: Path, output: Path, config: Config | None = None, **chosen: Any
) -> tuple[VideoTask, dict[str, Any]]:
    """From a clip to its verified result; the task and its ledger row."""
    task = task_of(source, output, config, **chosen)
    plan = plan_video(task)
    do_segments(task, plan, config)
    row: Mapping[str, Any] = assemble(task, plan)
    return task, dict(row)


def _ignore(_: object) -> None:
    return None
