"""A pin for each model against one pin for both: pace of a job, memory of the pins, and what a request waits.

    python -m bench.pins                        a second a frame on this machine, then light networks
    python -m bench.pins --networks light --rounds 5

A job runs alone for its pace, then again while somebody sends single frames through the same chain, one after the
other. Layouts take turns within a round; medians are printed. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.frames import FrameBatch
from bench.compare import light_frames
from bench.environment import run_as_pin
from bench.job import Job, Probe, staying_ray
from bench.load import Served, frames_of, quantile
from bench.models import Case
from bench.processes import pss_bytes, tree
from bench.restage import machine, say
from bench.setup import LAYOUTS, WARM_FRAMES, Bench
from cluster.calls import Call
from cluster.config import Config
from jobs.task import VideoTask

if TYPE_CHECKING:
    from jobs.progress import Reporter

Row = dict[str, Any]

#: A request that is not answered by then never will be.
_ANSWER_SECONDS = 300
_LOOK_SECONDS = 0.05


class Asking(Probe):
    """A probe that sends requests through the job's own chain while its lane is at work.

    Args:
        ray_pid: the process of the Ray.
        config: says which pin hosts a model.
        share: of the time that a request is on its way; in between nobody asks.
    """

    def __init__(self, ray_pid: int, config: Config, share: float) -> None:
        super().__init__(ray_pid)
        self.served: list[Served] = []
        self._config = config
        self._share = share

    @contextmanager
    def following(self, reporter: Reporter, tasks: Sequence[VideoTask]) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._ask, args=(tasks[0], stop), daemon=True)
        with super().following(reporter, tasks):
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join(_ANSWER_SECONDS)

    def _ask(self, task: VideoTask, stop: threading.Event) -> None:
        frame = frames_of(1, self._size(task))
        while not stop.wait(_LOOK_SECONDS):
            if self.timeline.frames and "assembling" not in self.timeline.stages:
                self.served.append(self._one(task, frame))
                stop.wait(self.served[-1].latency * (1 / self._share - 1))

    def _one(self, task: VideoTask, frame: FrameBatch) -> Served:
        """One frame through all pins; waits and turns of all of them together."""
        from cluster.pins import handle

        sent, value, responses = time.monotonic(), frame, []
        for pin, group in groupby(task.steps, key=lambda step: self._config.pin_of(step.model).name):
            steps = [asdict(step) for step in group]
            value = handle(pin).run.remote(steps, value, None, Call("interactive"))
            responses.append(value)
        results = [response.result(timeout_s=_ANSWER_SECONDS) for response in responses]
        now = time.monotonic()
        return Served(now, sum(r.waited for r in results), sum(r.ran for r in results), now - sent)

    def _size(self, task: VideoTask) -> tuple[int, int]:
        from jobs.plan import plan_video

        info = plan_video(task).scan.info
        return info.width, info.height


def compare(bench: Bench, case: Case, ray: int, share: float) -> Iterator[Row]:
    """A row per layout, paces of the first one's."""
    frames = bench.frames if case.name == "heavy" else light_frames(bench)
    clip = bench.clip(frames, case.size)
    layouts = bench.layouts
    jobs = {layout: bench.job(case, clip, layout) for layout in layouts}
    pace: dict[str, list[float]] = {layout: [] for layout in layouts}
    memory: dict[str, list[Row]] = {layout: [] for layout in layouts}
    served: dict[str, list[Served]] = {layout: [] for layout in layouts}
    for layout in layouts:
        bench.job(case, bench.clip(WARM_FRAMES, case.size), layout).run("warm-up", ray)
    for number in range(bench.rounds):
        for layout, job in jobs.items():
            timeline, _ = job.run(f"alone-{number}", ray)
            pace[layout].append(timeline.count / timeline.lane)
            memory[layout].append(_memory(ray, job))
            asking = Asking(ray, job.config, share)
            job.run(f"asked-{number}", ray, asking)
            served[layout] += asking.served
            bench.say(f"{case.name}, {layout}: {pace[layout][-1]:.2f} frames/s, {len(asking.served)} requests")
    for layout in layouts:
        waits = [one.waited for one in served[layout]]
        yield {
            "pins": layout,
            "networks": case.label,
            "frames": frames,
            "fps": statistics.median(pace[layout]),
            f"of_{layouts[0]}": statistics.median(a / b for a, b in zip(pace[layout], pace[layouts[0]], strict=True)),
            **{key: statistics.median(one[key] for one in memory[layout]) for key in memory[layout][0]},
            "requests": len(waits),
            **({"wait_p50_s": quantile(waits, 0.5), "wait_p95_s": quantile(waits, 0.95)} if waits else {}),
            **({"latency_p50_s": quantile([one.latency for one in served[layout]], 0.5)} if waits else {}),
        }


def _memory(ray: int, job: Job) -> Row:
    """What the job's pins hold after it, in MiB: main memory, and that of the cards where the driver tells it."""
    names = tuple(f"ray::ServeReplica:{pin.name}:" for pin in job.config.pins)
    pids = {process.pid for process in tree(ray) if process.name.startswith(names)}
    found: Row = {"pss_mib": sum(pss_bytes(pid) for pid in pids) / 2**20}
    cards = {pid: used for pid, used in _on_cards() if pid in pids}
    return found | ({"gpu_mib": sum(cards.values())} if cards else {})


def _on_cards() -> Iterator[tuple[int, float]]:
    """Processes on the cards and their MiB there; none without a driver, or where it does not see them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return
    query = [program, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    for line in subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines():
        pid, _, used = line.partition(",")
        if pid.strip().isdigit() and used.strip().isdigit():
            yield int(pid), float(used)


def table(facts: Row, rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [", ".join(f"{key} {value}" for key, value in facts.items())]
    for row in rows:
        lines += ["", f"pins: {row['pins']}; {row['networks']}"]
        values = {key: value for key, value in row.items() if key not in ("pins", "networks")}
        lines += [f"    {key:<18}{value:.3g}" for key, value in values.items()]
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with a message on nonsense."""
    parser = argparse.ArgumentParser(prog="python -m bench.pins", description=(__doc__ or "").splitlines()[0])
    both = ("heavy", "light")
    parser.add_argument("--networks", nargs="+", choices=both, default=both, help="both unless given")
    parser.add_argument("--frames", type=int, default=24, help="of the heavy clip; light x10 (24)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; medians are printed (3)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help=f"torch's, in a pin ({cores}, one a core)")
    parser.add_argument("--share", type=float, default=0.2, help="of the time that a request is on its way (0.2)")
    parser.add_argument("--pins", nargs="+", choices=LAYOUTS, default=LAYOUTS, help="layouts; both unless given")
    parser.add_argument("--clip", type=Path, help="a video to take frames from")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    args = parser.parse_args(argv)
    if min(args.frames, args.rounds, args.threads) < 1 or not 0 < args.share <= 1:
        parser.error("--frames, --rounds and --threads must be positive, --share between 0 and 1")
    if args.clip is not None and not args.clip.is_file():
        parser.error(f"--clip: {args.clip} is not a file")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, then prints the table or the JSON; what is going on is told on standard error."""
    args = arguments(argv)
    facts = {**machine(), "torch_threads": args.threads}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="troupe-bench-") as folder:
        bench = Bench(Path(folder), args.frames, args.rounds, args.threads, tuple(args.pins), args.clip, None, say)
        with staying_ray(bench.weights) as ray:
            for name in args.networks:
                rows += compare(bench, bench.case(name), ray, args.share)
    print(json.dumps({"machine": facts, "rows": rows}, indent=2) if args.json else table(facts, rows))


if __name__ == "__main__":
    run_as_pin("bench.pins")
    main()
