"""What the HTTP service adds: to an image's way through a pin, idle and beside batch jobs; to a clip's; small calls.

    python -m bench.http

`image` is one `POST /v1/upscale`, from sending it to the answer's last byte, at random moments that take a share of the
pin's time: on an idle pin, then beside two batch jobs that saturate it. `clip` is the time from submitting a clip to
having its result, beside the time of planning, lane and assembly of the same clip in a bare process, on the same warm
pins, in turns. `small` is how many small requests a second are answered. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
import cv2
import numpy as np
import ray

from actors.model import Step
from bench.clip import drawn, write_clip
from bench.load import Load, Target, frames_of, quantile
from bench.models import linked_weights
from bench.networks import parse_size
from bench.priority import JOBS, UPSCALE, WINDOW, table
from bench.restage import machine
from cluster.config import Config, PinSettings, TroupeSettings
from cluster.pins import delete_applications, deploy_all, describe
from cluster.service_settings import HttpSettings, ServiceSettings
from cluster.session import connect
from jobs.restage.settings import resolve
from serve.app import build
from serve.folders import DataFolder
from serve.payload import INPUT, RestagePayload
from serve.places import service_args
from serve.progress import TaskProgress
from serve.restage import STAGES, restage
from serve.store import NewTask, Task, TaskState
from serve.work import Work

Row = dict[str, Any]

PIN = "bench-http"
SERVICE = "bench-http-service"
_SLACK_SECONDS = 0.1
_FPS = 30
#: Each look takes some milliseconds of a core that the clip's work needs too.
_LOOK_SECONDS = 0.2
_ALONE = 7


def measured(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """A row for each part, on a connected Ray."""
    config = _config(args, folder)
    from actors.pin import build as build_pin

    deploy_all(config.pins, build_pin, {SERVICE: build(service_args(config))})
    step = Step(UPSCALE, {}, {"size": [2 * args.size[0], 2 * args.size[1]], "max_input": None})
    describe(PIN, [asdict(step)], 120)
    try:
        yield from asyncio.run(_images(args, config, step))
        yield _clips(args, config, folder)
        yield asyncio.run(_small(args, config))
    finally:
        delete_applications([SERVICE, PIN])


def _config(args: argparse.Namespace, folder: Path) -> Config:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    service = ServiceSettings(data=str(folder / "data"), runners=1, on_demand_at_once=1000)
    pin = PinSettings(name=PIN, models=(UPSCALE,), micro_batch=1, torch_threads=args.threads)
    return Config(pins=(pin,), troupe=TroupeSettings(service=service), http=HttpSettings(port=port))


def _base(config: Config) -> str:
    return f"http://127.0.0.1:{config.http.port}"


async def _images(args: argparse.Namespace, config: Config, step: Step) -> list[Row]:
    """Idle and busy, and what the bound of the busy one comes to."""
    target = Target(PIN, (step,), frames_of(args.frames, args.size), frames_of(1, args.size))
    _, png = cv2.imencode(".png", next(drawn(args.size)))
    async with aiohttp.ClientSession(_base(config)) as session:
        alone = [await _upscaled(session, png.tobytes()) for _ in range(_ALONE)]
        rate = args.share / float(np.median(alone))
        idle = await _stream(session, png.tobytes(), rate, args)
        with await asyncio.to_thread(Load(target, JOBS, WINDOW).__enter__) as load:
            busy = await _stream(session, png.tobytes(), rate, args)
    call = float(np.median([one.ran for one in load.served]))
    bound = 1.5 * (quantile(idle, 0.95) + call) + _SLACK_SECONDS
    return [
        {
            "part": "image",
            "models": f"{UPSCALE} at {args.size[0]}x{args.size[1]}, {args.requests} requests",
            "rate_per_s": rate,
            "batch_call_ms": 1000 * call,
            "idle": _milliseconds(idle),
            "busy": _milliseconds(busy),
            "busy_p95_ms": 1000 * quantile(busy, 0.95),
            "goal_busy_p95_ms": 1000 * bound,
        }
    ]


async def _stream(session: aiohttp.ClientSession, image: bytes, rate: float, args: argparse.Namespace) -> list[float]:
    """So many requests at random moments, `rate` a second on average; seconds of each."""
    dice, at, asked = random.Random(args.seed), time.monotonic(), []
    for _ in range(args.requests):
        at += dice.expovariate(rate)
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        asked.append(asyncio.create_task(_upscaled(session, image)))
    return list(await asyncio.gather(*asked))


async def _upscaled(session: aiohttp.ClientSession, image: bytes) -> float:
    begun = time.monotonic()
    params = {"upscale": UPSCALE, "scale": "2"}
    async with session.post("/v1/upscale", params=params, data=image, headers={"Content-Type": "image/png"}) as answer:
        body = await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"/v1/upscale answered {answer.status}: {body[:300]!r}")
    return time.monotonic() - begun


def _clips(args: argparse.Namespace, config: Config, folder: Path) -> Row:
    """The same clip through the service and in a bare process, in turns."""
    clip = folder / "clip.mp4"
    frames = write_clip(clip, round(args.seconds * _FPS), args.size)
    through, bare, planned = [], [], []
    # A process of Ray's, as runners and lanes are, which it starts at a lower priority than this one.
    alone = ray.remote(num_cpus=0, max_restarts=0)(Alone).remote(config, folder)
    for turn in range(args.rounds + 1):
        seconds, lane = asyncio.run(_submitted(config, clip)), ray.get(alone.seconds.remote(clip, turn))
        if turn:  # the first brings up what both need
            through.append(seconds[0])
            planned.append(seconds[1])
            bare.append(lane)
    extra = [a - b for a, b in zip(through, bare, strict=True)]
    return {
        "part": "clip",
        "models": f"{UPSCALE}, {frames} frames of {args.size[0]}x{args.size[1]}, {args.rounds} rounds",
        "service_s": float(np.median(through)),
        "until_begun_s": float(np.median(planned)),
        "bare_lane_s": float(np.median(bare)),
        "extra_s": float(np.median(extra)),
        "goal_extra_s": 1.5,
    }


_CHOICES = {"preset": "balanced", "upscale": UPSCALE, "scale": "2", "matte": "none"}


async def _submitted(config: Config, clip: Path) -> tuple[float, float]:
    """Seconds from submitting the clip to its result, and to when it was begun."""
    async with aiohttp.ClientSession(_base(config)) as session:
        begun, started = time.monotonic(), 0.0
        form = aiohttp.FormData(_CHOICES)
        with clip.open("rb") as file:
            form.add_field("file", file, filename=clip.name)
            async with session.post("/v1/tasks", data=form) as answer:
                task = await answer.json()
        while task["state"] in ("queued", "running"):
            await asyncio.sleep(_LOOK_SECONDS)
            async with session.get(task["links"]["self"]) as answer:
                task = await answer.json()
            started = started or (time.monotonic() - begun if task["state"] != "queued" else 0.0)
        if task["state"] != "done":
            raise RuntimeError(f"the clip's task is {task['state']}: {task['error']}")
        async with session.get(task["links"]["result"]) as answer:
            await answer.read()
        return time.monotonic() - begun, started


class Alone:
    """An actor's body: the same work without a service."""

    def __init__(self, config: Config, folder: Path) -> None:
        cv2.setNumThreads(1)  # as lanes do
        self._config, self._folder = config, folder

    def seconds(self, clip: Path, turn: int) -> float:
        """What a clip takes."""
        settings = resolve(self._config, "balanced", upscale=UPSCALE, target="2", matte="none")
        task = DataFolder(self._folder / f"bare-{turn}").create()
        (task.input / INPUT).write_bytes(clip.read_bytes())
        payload = RestagePayload(settings=settings).model_dump(mode="json")
        new = NewTask(owner="bench", kind="restage", payload=payload, id=task.id)
        begun = time.monotonic()
        restage(Work(_claimed(new), task, self._config, TaskProgress(STAGES, task.input.parent), lambda: None))
        return time.monotonic() - begun


def _claimed(new: NewTask) -> Task:
    """A task as a runner would have it, of which only the payload matters here."""
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    return Task(
        **{
            name: getattr(new, name)
            for name in ("id", "owner", "kind", "payload", "priority", "webhook", "upload_bytes")
        },
        state=TaskState.RUNNING,
        created=now,
        updated=now,
        started=now,
        finished=None,
        attempts=1,
        round=0,
        lease_owner="",
        lease_until=None,
        cancel_requested=False,
        progress=None,
        result=None,
        error=None,
        cost=None,
        last_event=1,
    )


async def _small(args: argparse.Namespace, config: Config) -> Row:
    """Looks at a task, from many clients at once."""
    async with aiohttp.ClientSession(_base(config), connector=aiohttp.TCPConnector(limit=args.clients)) as session:
        async with session.get("/v1/tasks") as answer:
            path = (await answer.json())["tasks"][0]["links"]["self"]
        rows = {name: await _pounded(session, where, args) for name, where in (("task", path), ("healthz", "/healthz"))}
    return {"part": "small", "models": f"{args.clients} clients, {args.looks} requests each", **rows}


async def _pounded(session: aiohttp.ClientSession, path: str, args: argparse.Namespace) -> Row:
    async def client() -> list[float]:
        taken = []
        for _ in range(args.looks):
            begun = time.monotonic()
            async with session.get(path) as answer:
                await answer.read()
                answer.raise_for_status()
            taken.append(time.monotonic() - begun)
        return taken

    begun = time.monotonic()
    taken = [one for each in await asyncio.gather(*(client() for _ in range(args.clients))) for one in each]
    return {"per_s": len(taken) / (time.monotonic() - begun), **_milliseconds(taken)}


def _milliseconds(seconds: Sequence[float]) -> Row:
    return {f"p{round(100 * q)}_ms": 1000 * quantile(seconds, q) for q in (0.5, 0.95, 0.99)}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with a message on nonsense."""
    parser = argparse.ArgumentParser(prog="python -m bench.http", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=60, help="images, idle and busy each (60)")
    parser.add_argument("--share", type=float, default=0.3, help="of an image's time at which they come (0.3)")
    parser.add_argument("--frames", type=int, default=5, help="of a batch call (5)")
    parser.add_argument("--size", type=parse_size, default=(192, 144), help="of images and the clip (192x144)")
    parser.add_argument("--seconds", type=float, default=3, help="of the clip (3)")
    parser.add_argument("--rounds", type=int, default=3, help="of the clip (3)")
    parser.add_argument("--clients", type=int, default=16, help="of small requests (16)")
    parser.add_argument("--looks", type=int, default=100, help="small requests of each client (100)")
    parser.add_argument("--threads", type=int, default=0, help="torch's (0: one a core)")
    parser.add_argument("--seed", type=int, default=5, help="of the moments at which images come (5)")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    args = parser.parse_args(argv)
    if min(args.requests, args.frames, args.rounds, args.clients, args.looks) < 1 or not 0 < args.share < 1:
        parser.error("counts must be positive, --share between 0 and 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measures on a local Ray, then prints the table or the JSON."""
    args = arguments(argv)
    facts: Mapping[str, Any] = machine()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="troupe-bench-")))
        store = linked_weights(folder / "weights", UPSCALE, args.size)
        os.environ["TROUPE_WEIGHTS"] = str(store.folder)  # pins that are built here look there
        os.environ.pop("RAY_ADDRESS", None)
        stack.enter_context(connect(num_cpus=2))
        rows = list(measured(args, folder))
    print(json.dumps({"machine": facts, "rows": rows}, indent=2) if args.json else table(facts, rows))


if __name__ == "__main__":
    main()
