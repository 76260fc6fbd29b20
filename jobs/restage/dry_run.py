"""`--dry-run`: the plan of every video, made for real, and nothing started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from actors.catalogue import card
from actors.upscale.sizes import output_size
from actors.video.scan import scan
from cluster.errors import TroupeError
from jobs.display import Display
from jobs.inputs import Input
from jobs.limits import limits_of
from jobs.plan import Plan, make_plan
from jobs.restage.ingest import Ingest, Look
from jobs.restage.settings import LANCZOS, MATTE_NONE, RestageSettings


def show_plan(
    ingest: Ingest,
    looked: Sequence[tuple[Input, Look]],
    missing: Sequence[str],
    display: Display,
) -> None:
    """Plans each video (one decode) and shows runs, segments, sizes, models and weights."""
    with TemporaryDirectory(prefix="troupe-") as folder:
        for item, look in looked:
            try:
                _show(ingest, item, look, Path(folder), display)
            except TroupeError as error:
                display.failed(str(item.path), str(error))
    used = {model for _, look in looked for model in (ingest.settings.upscale, look.matte)} - {LANCZOS, MATTE_NONE}
    needed = sorted({name for model in used for name in card(model).weights})
    display.emit("weights", present=[name for name in needed if name not in missing], missing=list(missing))
    for name in needed:
        display.note(
            f"weights missing: {name} (troupe weights fetch {name})" if name in missing else f"weights: {name}"
        )


def _show(ingest: Ingest, item: Input, look: Look, folder: Path, display: Display) -> None:
    settings, config = ingest.settings, ingest.config
    size = output_size((look.info.width, look.info.height), settings.parsed_target)
    models = [model for model in (settings.upscale, look.matte) if model not in (LANCZOS, MATTE_NONE)]
    stateful = any(card(model).stateful for model in models)
    batch = config.troupe.batch
    limits = limits_of(config)
    scanned = scan(item.path, limits, allow_damaged=ingest.allow_damaged, workdir=folder)
    warmup = batch.warmup_frames if ingest.split_shots else 0
    plan = make_plan(scanned, batch.segment_seconds, stateful=stateful, warmup=warmup)
    _report(item, plan, size, settings, look.matte, display)


def _report(
    item: Input, plan: Plan, size: tuple[int, int], settings: RestageSettings, matte: str, display: Display
) -> None:
    info, upscale = plan.scan.info, settings.upscale
    reduced = min(1.0, (settings.max_input or min(info.width, info.height)) / min(info.width, info.height))
    megapixels = len(plan.scan) * info.width * info.height * reduced**2 / 1e6
    runs = [[[s.first, s.last] for s in run.segments] for run in plan.runs]
    display.emit(
        "plan",
        input=str(item.path),
        output=str(item.output),
        frames=len(plan.scan),
        seconds=round(plan.scan.seconds, 3),
        size=[info.width, info.height],
        output_size=list(size),
        cuts=plan.cuts.tolist(),
        runs=runs,
        upscale=upscale,
        matte=matte,
        upscaling_tflop=None if upscale == LANCZOS else round(card(upscale).work * megapixels, 1),
        notices=list(info.notices),
        approximate=plan.approximate,
    )
    if display.mode == "json":
        return
    work = "" if upscale == LANCZOS else f", {card(upscale).work * megapixels:.0f} TFLOP of upscaling"
    display.note(
        f"{item.path.name}: {info.width}x{info.height} → {size[0]}x{size[1]}, {len(plan.scan)} frames, "
        f"{plan.scan.seconds:.2f} s, {len(plan.cuts)} cuts, {len(plan.runs)} runs, {len(plan.segments)} segments\n"
        f"    {upscale}, matte {matte}{work} → {item.output}"
    )
    for notice in info.notices:
        display.note(f"    {notice}")
