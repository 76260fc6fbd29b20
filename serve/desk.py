"""The front desk's tools, made once for each process that answers requests."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from fastapi import Request

from actors.frames import FrameBatch
from actors.model import Step
from actors.video.stills import Stills
from cluster.config import Config
from cluster.service_settings import ServiceSettings
from jobs.backgrounds import Library
from jobs.limits import limits_of
from serve.edge.admission import Places
from serve.edge.auth import Auth
from serve.folders import DataFolder
from serve.places import data_root, database_url, library_of
from serve.store import Store
from serve.transfer.fetch import GuardedClient
from serve.transfer.pace import Patience
from serve.transfer.uploads import UploadLimits, Uploads
from serve.transfer.webhooks import Signer

#: Images in memory at once, from their file to their answer; pins do them one after the other.
_IMAGES = 8
#: Of these, images being decoded at once, and what each of those processes may take.
_DECODERS, _IMAGE_MEMORY = 4, 2**30
#: A place for an image to arrive is kept no longer.
_IMAGE_SECONDS = 120.0
#: Tasks being accepted at once, beside those whose files are being received: more would only wait for the database.
_ACCEPTING = 12


class Perform(Protocol):
    """What images are given to: `serve.performers.Performers`."""

    async def perform(self, step: Step, batch: FrameBatch) -> FrameBatch:
        """The batch after the step."""
        ...


@dataclass(frozen=True, slots=True)
class Desk:
    """Everything that a route needs.

    Attributes:
        config: pins, presets, limits, and the service's own settings.
        store: tasks.
        data: their files.
        auth: who asks.
        uploads, image_uploads: receive bodies.
        client: asks what strangers name.
        signer: of webhooks; None where there is no secret, and then none is sent.
        stills: decodes strangers' images.
        performers: does them.
        library: background categories.
        images: places of images in memory; whoever comes later waits, with its file on the disk.
        decoders: places of images that are being decoded, likewise.
        accepting: places of requests that bring a task.
        on_demand: places of requests that are answered at once.
        streams: places of event streams, each owner's own.
        ready: what is wrong with the pins, by name; empty when all is well.
        ending: set when this process is to end.
    """

    config: Config
    store: Store
    data: DataFolder
    auth: Auth
    uploads: Uploads
    image_uploads: Uploads
    client: GuardedClient
    signer: Signer | None
    stills: Stills
    performers: Perform
    library: Library
    images: asyncio.Semaphore
    decoders: asyncio.Semaphore
    accepting: Places
    on_demand: Places
    streams: defaultdict[str, Places]
    ready: Callable[[], Mapping[str, str]]
    ending: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def service(self) -> ServiceSettings:
        """The service's own settings."""
        return self.config.troupe.service


def desk_of(request: Request) -> Desk:
    """FastAPI dependency: the desk of this process."""
    desk: Desk = request.app.state.desk
    return desk


@asynccontextmanager
async def opened_desk(
    config: Config,
    auth: Auth,
    performers: Perform,
    ready: Callable[[], Mapping[str, str]],
    environ: Mapping[str, str] = os.environ,
) -> AsyncIterator[Desk]:
    """A desk, from the first request to the last.

    Raises:
        StoreError: the database is not there.
        UsageError: the data folder cannot be used, or the webhook secret is none.
    """
    service, limits = config.troupe.service, limits_of(config)
    data = DataFolder(data_root(service, environ))
    upload_limits = UploadLimits(max_bytes=int(service.max_upload_gib * 2**30), at_once=service.max_uploads, files=3)
    shared = auth.owners > 1
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            Store(database_url(service, environ), attempts=service.attempts, connections=8)
        )
        # One process at a time answers for a database (it holds the address), so nobody handles what another one did.
        await store.free_reservations()
        client = await stack.enter_async_context(GuardedClient(service.allow_networks, service.allow_ports))
        image_limits = replace(
            limits,
            max_pixels=int(service.on_demand_megapixels * 1_000_000),
            max_bytes=int(service.on_demand_mib * 2**20),
            memory_bytes=min(limits.memory_bytes, _IMAGE_MEMORY),
        )
        image_upload_limits = UploadLimits(
            max_bytes=image_limits.max_bytes,
            at_once=service.on_demand_at_once,
            patience=Patience(total_seconds=_IMAGE_SECONDS),
        )
        stills = Stills(image_limits)
        stack.push_async_callback(asyncio.to_thread, stills.close)
        yield Desk(
            config,
            store,
            data,
            auth,
            Uploads(upload_limits, shared=shared),
            Uploads(image_upload_limits, shared=shared),
            client,
            Signer.from_environ(service.webhook_secret_env, environ),
            stills,
            performers,
            library_of(config),
            asyncio.Semaphore(_IMAGES),
            asyncio.Semaphore(_DECODERS),
            Places(service.max_uploads + _ACCEPTING, "busy", "tasks are being accepted", shared=shared),
            Places(service.on_demand_at_once, "busy", "requests are being answered", shared=shared),
            defaultdict(
                lambda: Places(service.events_per_token, "too_many_streams", "event streams of this token are open")
            ),
            ready,
        )
