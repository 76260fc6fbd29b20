"""What restaging costs beside what it could cost: pace, bytes, memory.

    python -m bench.restage                     all parts, on clips that it draws
    python -m bench.restage --part c --json     one of them, for machines

(a) the job on warm pins against its bare networks in one process with a torch thread a core, on the same frames;
(b) the job against the step-by-step recipe on the same networks, once heavy and once light ones, and the bytes that
each writes to files; (c) preset `draft` against one libav graph; (d) memory of all processes of a job, and of one on
ten times as many frames. Start-up is printed apart and is in no ratio. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.compare import Row, against_graph, against_networks, against_recipe, memory_over_length
from bench.environment import run_as_pin
from bench.job import staying_ray
from bench.models import LIGHT, Case
from bench.networks import parse_size
from bench.setup import LAYOUTS, Bench
from bench.subjects import UPSCALE

PARTS = {
    "a": "job against bare networks (warm pins, frames a second)",
    "b": "job against the step-by-step recipe (seconds, bytes written)",
    "c": "preset draft against one libav graph (frames a second)",
    "d": "memory of all processes, and on ten times as many frames (PSS)",
}


def measure(
    bench: Bench, parts: Sequence[str], networks: Sequence[str], seconds: float, settle: float
) -> Iterator[Row]:
    """The rows of these parts, as they are made."""
    with ExitStack() as stack:
        if {"a", "b", "c"} & set(parts):
            ray = stack.enter_context(staying_ray(bench.weights))
        for name in networks if {"a", "b"} & set(parts) else ():
            case = bench.case(name)
            if "a" in parts and name == networks[0]:
                yield from against_networks(bench, case, ray)
            if "b" in parts:
                yield from against_recipe(bench, case, ray)
        if "c" in parts:
            yield from against_graph(bench, ray)
    if "d" in parts:
        yield from memory_over_length(bench, seconds, settle)


def machine() -> dict[str, str | int | float]:
    """What the figures were measured on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "ray": version("ray"),
        "av": version("av"),
        "load": round(os.getloadavg()[0], 2),
    }


def table(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The rows as text, part by part."""
    lines = [", ".join(f"{key} {value}" for key, value in facts.items())]
    part = ""
    for row in rows:
        if row["part"] != part:
            part = row["part"]
            lines += ["", f"({part}) {PARTS[part]}"]
        lines += [f"  {row['networks']}"]
        lines += [f"    {key:<18}{_shown(value)}" for key, value in row.items() if key not in ("part", "networks")]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    match value:
        case dict():
            return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
        case list():
            return " / ".join(_shown(one) for one in value)
        case float() | int():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        case _:
            return str(value)


def _case(text: str) -> Case:
    name, _, size = text.partition("@")
    if name not in UPSCALE:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(UPSCALE)}")
    if name == LIGHT.upscale:
        raise argparse.ArgumentTypeError(f"{name} is the name that the light networks go by here; choose another")
    try:
        return Case("heavy", name, parse_size(size))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} does not end in @WIDTHxHEIGHT: {error}") from error


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with a message on nonsense."""
    parser = argparse.ArgumentParser(prog="python -m bench.restage", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="all unless given")
    both = ("heavy", "light")
    parser.add_argument("--networks", nargs="+", choices=both, default=both, help="of part b; a takes the first")
    parser.add_argument("--frames", type=int, default=24, help="of the heavy clip; light x10, draft x40 (24)")
    parser.add_argument("--seconds", type=float, default=120, help="of the shorter clip of part d (120)")
    parser.add_argument("--settle", type=float, default=30, help="part d samples so long after planning (30)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; medians are printed (3)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help=f"torch's, in a process ({cores}, one a core)")
    parser.add_argument("--pins", nargs="+", choices=LAYOUTS, default=LAYOUTS, help="layouts; part b takes the first")
    parser.add_argument("--heavy", type=_case, help="UPSCALER@WIDTHxHEIGHT instead of the first of a second a frame")
    parser.add_argument("--clip", type=Path, help="a video to take frames from; parts c and d need a green screen")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    parser.add_argument("--keep", action="store_true", help="leave clips and results, and say where")
    args = parser.parse_args(argv)
    if min(args.frames, args.rounds, args.threads) < 1 or args.seconds <= 0 or args.settle < 0:
        parser.error("--frames, --rounds, --threads and --seconds must be positive, --settle not negative")
    if args.clip is not None and not args.clip.is_file():
        parser.error(f"--clip: {args.clip} is not a file")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, then prints the table or the JSON; what is going on is told on standard error."""
    args = arguments(argv)
    facts = {**machine(), "torch_threads": args.threads}
    with ExitStack() as stack:
        if args.keep:
            folder = tempfile.mkdtemp(prefix="troupe-bench-")
            say(f"everything is kept in {folder}")
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="troupe-bench-"))
        bench = Bench(
            Path(folder), args.frames, args.rounds, args.threads, tuple(args.pins), args.clip, args.heavy, say
        )
        rows = list(measure(bench, args.part, args.networks, args.seconds, args.settle))
    if args.json:
        print(json.dumps({"machine": facts, "rows": rows}, indent=2))
    else:
        print(table(facts, rows))


def say(text: str) -> None:
    """Tells what is going on."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_as_pin("bench.restage")
    main()
