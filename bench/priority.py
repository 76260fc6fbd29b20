"""How long a request waits while batch jobs saturate its pin, and what they keep.

    python -m bench.priority             fake models of 50 ms a call, two batch jobs
    python -m bench.priority --real      upscaling and matting as they are, one pin saturated at a time

A request waits for the turn in progress, for requests before it and for batch's small ageing share. `ideal` is the
first two alone, computed for the very moments at which the requests came: nobody who lets turns end can do better.
Waits are the pin's own, from a call's arrival in the replica to its first turn. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.model import Step
from bench.fakes import FIRST, faking
from bench.load import Load, Requests, Served, Target, frames_of, quantile
from bench.models import MATTE, linked_weights, origin
from bench.networks import parse_size
from bench.restage import machine
from cluster.config import PinSettings
from cluster.pins import describe, ensure_pins
from cluster.session import connect
from cluster.weights import WeightsStore

Row = dict[str, Any]

JOBS = 2
#: A lane's, by default.
WINDOW = 3
UPSCALE = "realesr-animevideov3"
_CALL_SECONDS = 0.05
_SLACK_SECONDS = 0.03
#: Requests by which the pin's capacity is known.
_ALONE = 7


def against_fakes(args: argparse.Namespace) -> Iterator[Row]:
    """Two rows: a stream of requests, and a burst of them."""
    frame = 1000 * _CALL_SECONDS / args.frames
    settings = PinSettings(name="bench-priority", models=(FIRST,), num_gpus=0, max_call_ms=args.max_call_ms)
    batch = frames_of(args.frames, (64, 48))
    target = Target(settings.name, (Step(FIRST, {}, {"ms": frame}),), batch, batch)
    with faking():
        _deploy(settings, target)
    asking = _requests(target)
    # What sleeps and copies is a little longer than it should be: capacity is what the pin has.
    call = _idle_run(asking)
    turn = call / args.frames  # batch gives way at the border of a frame
    rate = args.share / call
    with Load(target, JOBS, WINDOW) as load:
        stream: list[Served] = ray.get(asking.stream.remote(rate, args.requests, args.seed))
        burst: list[Served] = ray.get(asking.burst.remote(args.burst))
    yield {
        "part": "stream",
        "models": f"fake, {args.frames} x {frame:g} ms a call",
        "requests": len(stream),
        "rate_per_s": rate,
        **_waits(stream),
        "ideal": _milliseconds(ideal_waits(stream, call, turn)),
        "goal_wait_p95_ms": 1000 * (call + _SLACK_SECONDS),
        "batch_kept": _kept(stream, load.served),
        "goal_batch_kept": 0.85,
    }
    ran = sum(one.ran for one in burst)
    begun = min(one.ended - one.latency for one in burst)
    yield {
        "part": "burst",
        "models": f"fake, {args.frames} x {frame:g} ms a call",
        "requests": len(burst),
        **_waits(burst),
        "whole_s": max(one.ended for one in burst) - begun,
        "pin_s": ran,
        "ratio": (max(one.ended for one in burst) - begun) / ran,
        "goal_ratio": 1.2,
    }


def against_models(args: argparse.Namespace, store: WeightsStore) -> Iterator[Row]:
    """A row per pin: waits of requests on an idle one, and on one that two batch jobs saturate."""
    width, height = args.size
    chosen = {
        "upscale": Step(UPSCALE, {}, {"size": [2 * width, 2 * height]}),
        "matte": Step(MATTE, {}, {"long_side": max(args.size)}),
    }
    for name, step in chosen.items():
        settings = PinSettings(
            name=f"bench-{name}", models=(step.model,), torch_threads=args.threads, max_call_ms=args.max_call_ms
        )
        target = Target(settings.name, (step,), frames_of(args.frames, args.size), frames_of(1, args.size))
        _deploy(settings, target)
        asking = _requests(target)
        rate = args.share / _idle_run(asking)
        idle: list[Served] = ray.get(asking.stream.remote(rate, args.requests, args.seed))
        with Load(target, JOBS, WINDOW) as load:
            busy: list[Served] = ray.get(asking.stream.remote(rate, args.requests, args.seed))
        call = float(np.median([one.ran for one in load.served]))
        idle_p95, busy_p95 = (quantile([one.latency for one in served], 0.95) for served in (idle, busy))
        yield {
            "part": "real",
            "models": f"{step.model} at {width}x{height}, {origin(store, step.model)}",
            "requests": len(busy),
            "rate_per_s": rate,
            "batch_call_ms": 1000 * call,
            "idle": _waits(idle),
            "busy": _waits(busy),
            "ratio": busy_p95 / (idle_p95 + call),
            "goal_ratio": 1.5,
            "batch_kept": _kept(busy, load.served),
        }


def ideal_waits(served: Sequence[Served], call: float, turn: float) -> list[float]:
    """Waits of these requests in a pin that takes `call` seconds for each, has batch turns of `turn` seconds without
    end, and gives the next turn to a request if there is one."""
    free, waits = 0.0, []
    for arrived in sorted(one.ended - one.latency for one in served):
        # Whenever nobody asked, another turn of batch has begun.
        if free < arrived:
            free += turn * np.ceil((arrived - free) / turn)
        waits.append(float(free - arrived))
        free += call
    return waits


def _deploy(settings: PinSettings, target: Target) -> None:
    from actors.pin import build

    ensure_pins([settings], build)
    describe(settings.name, [{"model": step.model, "load": {}, "params": {}} for step in target.steps], 120)


def _requests(target: Target) -> Any:
    return ray.remote(num_cpus=0, max_restarts=0)(Requests).remote(target)


def _idle_run(asking: Any) -> float:
    """Seconds that a request takes of a pin that nobody else uses."""
    alone: list[Served] = [ray.get(asking.burst.remote(1))[0] for _ in range(_ALONE)]
    return float(np.median([one.ran for one in alone]))


def _waits(served: Sequence[Served]) -> Row:
    return {
        "wait": _milliseconds([one.waited for one in served]),
        "latency": _milliseconds([one.latency for one in served]),
        "run_p50_ms": 1000 * quantile([one.ran for one in served], 0.5),
    }


def _milliseconds(seconds: Sequence[float]) -> Row:
    return {f"p{round(100 * q)}_ms": 1000 * quantile(seconds, q) for q in (0.5, 0.95, 0.99)}


def _kept(served: Sequence[Served], batch: Sequence[Served]) -> float:
    """Pin time of batch while requests came, as a share of what they left of it."""
    begun, ended = min(one.ended - one.latency for one in served), max(one.ended for one in served)
    worked = sum(one.ran for one in batch if begun < one.ended <= ended)
    return worked / (ended - begun - sum(one.ran for one in served))


def table(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [", ".join(f"{key} {value}" for key, value in facts.items())]
    for row in rows:
        lines += ["", f"{row['part']}: {row['models']}"]
        lines += [f"    {key:<18}{_shown(value)}" for key, value in row.items() if key not in ("part", "models")]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with a message on nonsense."""
    parser = argparse.ArgumentParser(prog="python -m bench.priority", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real", action="store_true", help="the real models instead of fakes")
    parser.add_argument("--requests", type=int, help="of the stream (600; with --real 60)")
    parser.add_argument("--share", type=float, default=0.3, help="of the pin's time that requests take (0.3)")
    parser.add_argument("--burst", type=int, default=100, help="requests at once (100)")
    parser.add_argument(
        "--frames", type=int, help="of a call; of a batch call with --real, where requests have one (5)"
    )
    most = PinSettings.model_fields["max_call_ms"].default
    parser.add_argument("--max-call-ms", type=float, default=most, help=f"longest turn of a call ({most:g})")
    parser.add_argument("--size", type=parse_size, default=(192, 144), help="of frames with --real (192x144)")
    parser.add_argument("--threads", type=int, default=0, help="torch's with --real (0: one a core)")
    parser.add_argument("--seed", type=int, default=5, help="of the moments at which requests come (5)")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    args = parser.parse_args(argv)
    args.requests = args.requests or (60 if args.real else 600)
    args.frames = args.frames or 5
    if min(args.requests, args.burst, args.frames) < 1 or args.max_call_ms <= 0 or not 0 < args.share < 1:
        parser.error("--requests, --burst, --frames and --max-call-ms must be positive, --share between 0 and 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measures on a local Ray, then prints the table or the JSON."""
    args = arguments(argv)
    facts = machine()
    with ExitStack() as stack:
        if args.real:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="troupe-bench-")))
            store = linked_weights(folder / "weights", UPSCALE, args.size)
            # Pins that are built here look there.
            os.environ["TROUPE_WEIGHTS"] = str(store.folder)
        os.environ.pop("RAY_ADDRESS", None)
        stack.enter_context(connect(num_cpus=2))
        rows = list(against_models(args, store) if args.real else against_fakes(args))
    print(json.dumps({"machine": facts, "rows": rows}, indent=2) if args.json else table(facts, rows))


if __name__ == "__main__":
    main()
