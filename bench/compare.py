"""The comparisons: each runs a job and its alternative in turns and returns one row of plain values.

Medians are over rounds; ratios are taken within a round, so that a busy neighbour hits both sides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from av import VideoFrame

from actors.frames import FrameBatch
from actors.video.background import open_background
from actors.video.decode import Decoder
from actors.video.limits import Limits
from actors.video.scan import scan
from bench.clip import RATE
from bench.graph import run_graph
from bench.job import Job, Timeline
from bench.memory import measure_job
from bench.models import MATTE, Bare, Case
from bench.recipe import Recipe
from bench.setup import WARM_FRAMES, Bench
from bench.written import folder_bytes
from cluster.config import BatchSettings, Config, TroupeSettings
from cluster.errors import UsageError
from cluster.weights import WeightsStore
from jobs.restage.settings import resolve
from jobs.task import VideoTask

Row = dict[str, Any]

SIZE_480P = (640, 480)


def against_networks(bench: Bench, case: Case, ray: int) -> Iterable[Row]:
    """(a), a row per layout of pins; `ray` is the process of the Ray that jobs join."""
    clip = bench.clip(bench.frames, case.size)
    for layout in bench.layouts:
        job = bench.job(case, clip, layout)
        cold = _warm(bench, case, layout, ray)
        bare = _bare(bench, job.task("bare"), job)
        batches = _batches(clip, job)
        alone, jobs = [], []
        for number in range(bench.rounds):
            alone.append(sum(bare.seconds(batches).values()))
            jobs.append(job.run(f"networks-{number}", ray)[0])
            bench.say(f"(a) {layout}: networks {alone[-1]:.1f} s, job {jobs[-1].work:.1f} s")
        frames = jobs[0].count
        yield {
            "part": "a",
            "networks": case.label,
            "pins": layout,
            "frames": frames,
            "threads": bench.threads,
            "bare_fps": frames / statistics.median(alone),
            "job_fps": frames / statistics.median(timeline.work for timeline in jobs),
            "ratio": statistics.median(a / timeline.work for a, timeline in zip(alone, jobs, strict=True)),
            "goal": 0.95,
            "cold_startup_s": cold.startup,
            **_times(jobs),
        }


def against_recipe(bench: Bench, case: Case, ray: int) -> Iterable[Row]:
    """(b), one row."""
    clip = bench.clip(bench.frames if case.name == "heavy" else light_frames(bench), case.size)
    layout = bench.layouts[0]
    job = bench.job(case, clip, layout)
    task = job.task("recipe")
    if not (job.folder / "warm-up").exists():
        _warm(bench, case, layout, ray)
    bare = _bare(bench, task, job)
    bare.seconds(_batches(bench.clip(WARM_FRAMES, case.size), job))
    jobs, steps, recipe_bytes = [], [], []
    for number in range(bench.rounds):
        jobs.append(job.run(f"recipe-{number}", ray)[0])
        recipe = _recipe(bench, job, task, bare, clip, number)
        steps.append(recipe.run())
        recipe_bytes.append(folder_bytes(recipe.folder))
        bench.say(f"(b) {case.name}: job {jobs[-1].work:.1f} s, recipe {sum(steps[-1].values()):.1f} s")
    totals = [sum(step.values()) for step in steps]
    written = [timeline.written for timeline in jobs]
    yield {
        "part": "b",
        "networks": case.label,
        "pins": layout,
        "frames": jobs[0].count,
        "networks_ms": {
            name: 1000 * seconds / jobs[0].count
            for name, seconds in _median([timeline.seconds for timeline in jobs]).items()
            if name in (case.upscale, MATTE)
        },
        "job_s": statistics.median(timeline.work for timeline in jobs),
        "job_whole_s": statistics.median(timeline.whole for timeline in jobs),
        "recipe_s": statistics.median(totals),
        "ratio": statistics.median(t / timeline.work for t, timeline in zip(totals, jobs, strict=True)),
        "goal": 2.0 if case.name == "light" else 1.0,
        "job_bytes": statistics.median(written),
        "recipe_bytes": statistics.median(recipe_bytes),
        "bytes_ratio": statistics.median(recipe_bytes) / statistics.median(written),
        "bytes_goal": 20.0,
        "recipe_seconds": _median(steps),
        **_times(jobs),
    }


def against_graph(bench: Bench, ray: int) -> Iterable[Row]:
    """(c), one row."""
    clip = bench.clip(draft_frames(bench), SIZE_480P)
    config = Config(troupe=TroupeSettings(batch=BatchSettings(lanes=1)))
    backdrop = bench.backdrop((960, 720))
    job = Job(
        clip,
        bench.folder / "jobs" / "draft",
        resolve(config, "draft", background=str(backdrop)),
        config,
        bench.weights,
    )
    task = job.task("graph")
    background = _background(backdrop, task.finish.size)
    jobs, graphs = [], []
    for number in range(bench.rounds):
        timeline, _ = job.run(f"graph-{number}", ray)
        pace = run_graph(
            clip,
            bench.folder / "graph.mp4",
            background=background,
            encoder=task.encoder,
            decode_threads=task.limits.decode_threads,
            lead=timeline.frames[0][1],
        )
        jobs.append(timeline)
        graphs.append(pace)
        bench.say(f"(c) job {timeline.work:.1f} s, graph {pace.seconds:.1f} s")
    yield {
        "part": "c",
        "networks": "none (preset draft)",
        "frames": jobs[0].count,
        "job_fps": statistics.median(timeline.count / timeline.work for timeline in jobs),
        "graph_fps": statistics.median(pace.frames / pace.seconds for pace in graphs),
        "ratio": statistics.median(p.seconds / t.work for t, p in zip(jobs, graphs, strict=True)),
        "goal": 0.9,
        # Without what only the job does: the decode that it plans by, joining, and the decode that verifies.
        "steady_ratio": statistics.median(t.steady_fps / p.steady_fps for t, p in zip(jobs, graphs, strict=True)),
        "graph_cpu_ms": statistics.median(pace.cpu_ms for pace in graphs),
        "job_cpu_ms": {name: 1000 * cpu / jobs[0].count for name, cpu in _median([t.cpu for t in jobs]).items()},
        **_times(jobs),
    }


def memory_over_length(bench: Bench, seconds: float, settle: float) -> Iterable[Row]:
    """(d), one row: a draft and one on ten times as many frames."""
    found = {}
    for times in (1, 10):
        frames = round(seconds * RATE) * times
        clip = bench.clip(frames, SIZE_480P)
        arguments = [str(clip), "--preset", "draft", "--background", str(bench.backdrop((960, 720))), "--lanes", "1"]
        begun = time.perf_counter()
        arguments += ["-o", str(bench.folder / "jobs" / f"memory-{times}")]
        found[times] = measure_job(arguments, {}, settle)
        bench.say(f"(d) {frames} frames in {time.perf_counter() - begun:.0f} s: {found[times].mean / 2**20:.0f} MiB")
        if not found[times].samples:
            raise UsageError(
                f"--seconds {seconds:g}", f"the job ended within {settle:g} s of its plan", remedy="give more"
            )
    short, long = found[1], found[10]
    yield {
        "part": "d",
        "networks": "none (preset draft)",
        "frames": [round(seconds * RATE), round(seconds * RATE) * 10],
        "samples": [len(short.samples), len(long.samples)],
        "job_s": [short.seconds, long.seconds],
        "mean_mib": [short.mean / 2**20, long.mean / 2**20],
        "peak_mib": [short.peak / 2**20, long.peak / 2**20],
        "ratio": long.mean / short.mean,
        "peak_ratio": long.peak / short.peak,
        "goal": 1.05,
        "mib_by_process": {
            name: [short.by_name.get(name, 0) / 2**20, size / 2**20] for name, size in long.by_name.items()
        },
    }


def light_frames(bench: Bench) -> int:
    """Frames of a clip for light networks."""
    return 10 * bench.frames


def draft_frames(bench: Bench) -> int:
    """Frames of a clip for preset draft."""
    return 40 * bench.frames


def _warm(bench: Bench, case: Case, layout: str, ray: int) -> Timeline:
    """A short job that starts the pins and has them load their models."""
    timeline, _ = bench.job(case, bench.clip(WARM_FRAMES, case.size), layout).run("warm-up", ray)
    return timeline


def _bare(bench: Bench, task: VideoTask, job: Job) -> Bare:
    return Bare(task.steps, WeightsStore(job.weights), bench.device, bench.threads)


def _batches(clip: Path, job: Job) -> list[FrameBatch]:
    """The clip's frames as a lane's decoder makes them, in batches of a lane's size."""
    found = scan(clip, Limits(), workdir=job.folder)
    size = job.config.troupe.batch.batch_frames
    with Decoder(found, Limits()) as decoder:
        rgb = np.stack(list(decoder.frames(0, len(found))))
    parts = [slice(first, first + size) for first in range(0, len(found), size)]
    return [FrameBatch(rgb[part], found.pts[part], np.zeros(len(rgb[part]), np.bool_)) for part in parts]


def _recipe(bench: Bench, job: Job, task: VideoTask, bare: Bare, clip: Path, number: int) -> Recipe:
    folder = job.folder / f"steps-{number}"
    folder.mkdir(parents=True)
    return Recipe(
        clip=clip,
        folder=folder,
        networks=bare,
        size=task.finish.size,
        background=_background(bench.backdrop((960, 720)), task.finish.size),
        encoder=task.encoder,
        decode_threads=task.limits.decode_threads,
        batch=job.config.troupe.batch.batch_frames,
    )


def _background(path: Path, size: tuple[int, int]) -> VideoFrame:
    with open_background(path, *size, Limits(), workdir=path.parent) as background:
        return background.at(0)


def _times(jobs: Sequence[Timeline]) -> Row:
    """Where a job's time went: medians in seconds; work by stage overlaps, the parts of the whole do not."""
    return {
        "startup_s": statistics.median(timeline.startup for timeline in jobs),
        "whole_s": statistics.median(timeline.whole for timeline in jobs),
        "job_seconds": {
            "planning": statistics.median(timeline.planning for timeline in jobs),
            "lane": statistics.median(timeline.lane for timeline in jobs),
            "assembly": statistics.median(timeline.assembly for timeline in jobs),
        },
        "stage_seconds": _median([timeline.seconds for timeline in jobs]),
    }


def _median(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for values in rounds for name in values)
    return {name: statistics.median(values.get(name, 0.0) for values in rounds) for name in names}
