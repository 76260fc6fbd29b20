"""The whole service but for Ray: its real application, store and folders; images go to a stand-in for the pins."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from starlette.testclient import TestClient

from actors.frames import FrameBatch
from actors.model import Step
from cluster.config import Config, TroupeSettings
from cluster.service_settings import ServiceSettings
from serve.api import create_app
from serve.desk import Desk, opened_desk
from serve.edge.auth import Auth, Tokens
from serve.payload import RESULT
from serve.store import Claim, TaskState

T = TypeVar("T")

BASE = "http://127.0.0.1:8000"
MADE = bytes(range(256)) * 40


@dataclass
class StandIn:
    """What the pins do, without networks: enlarges by repeating, cuts out the left half."""

    steps: list[Step] = field(default_factory=list)
    hold: asyncio.Event | None = None
    error: Exception | None = None
    cancelled: int = 0

    async def perform(self, step: Step, batch: FrameBatch) -> FrameBatch:
        self.steps.append(step)
        if self.error is not None:
            raise self.error
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if "size" in step.params:
            width, height = step.params["size"]
            rgb = cv2.resize(batch.rgb[0], (width, height), interpolation=cv2.INTER_NEAREST)
            return FrameBatch(rgb[None], batch.pts, batch.cut)
        alpha = np.zeros(batch.rgb.shape[:3], np.uint8)
        alpha[:, :, : alpha.shape[2] // 2] = 255
        return FrameBatch(batch.rgb, batch.pts, batch.cut, alpha)


@dataclass
class Service:
    """A running service, and a hand on what is behind it."""

    client: TestClient
    desk: Desk
    performers: StandIn

    def run(self, work: Callable[..., Awaitable[T]], *arguments: Any, **named: Any) -> T:
        """Does it on the service's own event loop."""
        portal = self.client.portal
        assert portal is not None

        async def call() -> T:
            return await work(*arguments, **named)

        return portal.call(call)

    def claim(self) -> Claim:
        """What a runner would do next."""
        claim = self.run(self.desk.store.claim, "test", 30.0)
        assert claim is not None
        return claim

    def finish(self, claim: Claim | None = None) -> str:
        """Does the next task as a runner would, with a small file for a result; returns its id."""
        claim = claim or self.claim()
        (self.desk.data.of(claim.task.id).result / RESULT).write_bytes(MADE)
        result = {
            "file": RESULT,
            "media_type": "video/mp4",
            "bytes": len(MADE),
            "sha256": hashlib.sha256(MADE).hexdigest(),
            "frames": 40,
            "damaged": 0,
            "notices": [],
        }
        cost = {"wall_s": 1.5, "seconds": {"decode": 0.5}, "segments": 1, "retries": 0}
        assert self.run(self.desk.store.finish, claim, TaskState.DONE, result=result, cost=cost)
        return claim.task.id

    def folders(self) -> list[str]:
        """Ids of all tasks that have a folder."""
        return self.desk.data.ids()


def settings(folder: Path, **service: Any) -> Config:
    """A configuration whose service keeps everything in `folder`, and whose preset needs no weights."""
    chosen = {"preset": "draft", **service}
    mine = ServiceSettings(data=str(folder / "data"), library=str(folder / "library"), **chosen)
    return Config(troupe=TroupeSettings(service=mine))


@contextmanager
def service(
    folder: Path,
    *,
    tokens: Tokens | None = None,
    ready: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[Service]:
    """The service, from its first request to its last."""
    config, performers = settings(folder, **options), StandIn()
    desk: list[Desk] = []

    def opened() -> Any:
        return opened_desk(config, Auth(tokens), performers, lambda: ready or {"pin restage": "ok"}, environ or {})

    app = create_app(opened, max_requests=config.troupe.service.max_requests)
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        desk.append(app.state.desk)
        yield Service(client, desk[0], performers)
