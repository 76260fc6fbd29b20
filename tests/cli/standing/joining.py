"""What happens in a process that joins the Ray with a logical GPU of this folder; prints it as JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve.schema import ServeDeploySchema

from actors.model import Step
from cluster.config import PIN_IMPORT_PATH, BatchSettings, Config, PinSettings, TroupeSettings
from cluster.errors import RoomError, UsageError, WeightsError
from cluster.files import sha256_of
from cluster.nodes import check_shared, spread_weights, working_nodes
from cluster.room import survey
from cluster.session import Session, connect, messages_on_stderr
from jobs import perform as performing
from jobs.display import Display
from jobs.perform import perform
from tests.jobs.inprocess import task_of
from tests.media import write_clip

UPSCALE, MATTE = "realesr-animevideov3", "rvm-mobilenetv3"


def asking(batch: BatchSettings | None = None, **settings: Any) -> Config:
    """A job's configuration with one pin of its own beside the pin that runs."""
    pin = PinSettings.model_validate({"name": "beta", "models": (UPSCALE,), **settings})
    return Config(pins=(pin,), troupe=TroupeSettings(batch=batch or BatchSettings(lanes=1)))


def refused(session: Session, folder: Path, config: Config) -> dict[str, Any]:
    """How a job with this configuration is refused: its error, and seconds of work since it was connected."""

    @contextmanager
    def connected() -> Iterator[Session]:
        yield session

    performing.connect = connected  # type: ignore[assignment]
    task = replace(task_of(folder / "a.mp4", folder / "out"), steps=(Step(UPSCALE, {}, {"size": [64, 48]}),))
    begun = time.monotonic()
    try:
        perform([task], config, Display("json"), allow_skew=False)
    except RoomError as error:
        return {"error": str(error), "seconds": time.monotonic() - begun, "left": left_behind()}
    return {"error": ""}


def left_behind() -> list[str]:
    """Actors that wait, and whatever is not the pin that ran before."""
    return [each.name for each in survey().holders if each.waiting or each.application not in ("", "alpha")]


def deployed(*shares: float) -> dict[str, str]:
    """What Serve says after `serve deploy` of a file with pins of these shares, by pin."""
    client = ray_serve.context._get_global_client()
    applications = [
        {
            "name": f"gamma{index}",
            "route_prefix": None,
            "import_path": PIN_IMPORT_PATH,
            "args": {"name": f"gamma{index}", "models": [UPSCALE], "num_gpus": share},
        }
        for index, share in enumerate(shares)
    ]
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": applications}))
    deadline = time.monotonic() + 60
    while True:
        found = ray_serve.status().applications
        told = {name: found[name] for name in (app["name"] for app in applications) if name in found}
        states = {name: str(application.status.value) for name, application in told.items()}
        if len(told) == len(shares) and not {"DEPLOYING", "NOT_STARTED"} & set(states.values()):
            return {name: f"{states[name]}: {told[name].message}" for name in told}
        assert time.monotonic() < deadline, states
        time.sleep(0.1)


@ray.remote(num_cpus=0, num_gpus=0.3)
class Trainer:
    """Somebody else's."""

    def ready(self) -> bool:
        return True


def main(folder: Path) -> None:
    write_clip(folder / "a.mp4", frames=4, rate=12, width=64, height=48)
    with connect() as session, messages_on_stderr():
        seen: dict[str, Any] = {
            "gpu": refused(session, folder, asking(num_gpus=0.6)),
            "cpu": refused(session, folder, asking(num_gpus=0.1, num_cpus=session.cpus)),
            "store": refused(session, folder, asking(BatchSettings(lanes=1, batch_mib=2**20, window=9), num_gpus=0.1)),
        }
        trainer = Trainer.remote()
        ray.get(trainer.ready.remote())
        seen["other"] = refused(session, folder, asking(num_gpus=0.2))
        ray.kill(trainer)
        seen["deploy"] = deployed(0.3, 0.2)
        seen["deploy_left"] = left_behind()
    print(json.dumps(seen))


def on_two_nodes(folder: Path) -> None:
    """A second node that sees another file system: `/proc/self/cwd` is a folder of each process's own."""
    here, there = folder / "here", Path("/proc/self/cwd/there")
    (here / "there").mkdir(parents=True)
    os.chdir(here)
    (here / "there" / "a.pth").write_bytes(b"weights")
    digest = sha256_of(there / "a.pth")
    seen: dict[str, Any] = {}
    with connect(), messages_on_stderr():
        seen["nodes"] = len(working_nodes())
        check_shared(folder / "out", [folder / "a.mp4"])
        for name, root, source in (
            ("output", there, folder / "a.mp4"),
            ("input", folder / "out", there / "a.pth"),
        ):
            try:
                check_shared(root, [source])
            except UsageError as error:
                seen[name] = str(error)
        try:
            spread_weights({there / "a.pth": "0" * 64})
        except WeightsError as error:
            seen["damaged"] = str(error)
        seen["copied"] = spread_weights({there / "a.pth": digest})
        seen["again"] = spread_weights({there / "a.pth": digest})
    seen["left"] = sorted(path.name for path in (*(here / "there").iterdir(), *(folder / "out").iterdir()))
    print(json.dumps(seen))
