"""Whether the process lives, and whether the service can work."""

from __future__ import annotations

import asyncio
import logging
import time

from fastapi import APIRouter, Request, Response

from serve.desk import Desk
from serve.schemas import Health
from serve.store import StoreError

log = logging.getLogger(__name__)

router = APIRouter(tags=["health"])

_FRESH_SECONDS = 1.0
_STORE_SECONDS = 5.0
_LOOK_SECONDS = 10.0
_SILENT = "does not answer"


class Readiness:
    """What is well and what is not. Anybody may ask and looking costs: all share one look, and its answer for a second.

    Args:
        desk: what is looked at.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._look: asyncio.Task[dict[str, str]] | None = None
        self._begun = 0.0

    async def checks(self) -> dict[str, str]:
        """`ok` or what is wrong, by check; as it was a second ago at most, or when the look began that ends now."""
        if self._look is None or (self._look.done() and time.monotonic() - self._begun > _FRESH_SECONDS):
            self._look, self._begun = asyncio.create_task(self._looked()), time.monotonic()
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                checks = await asyncio.shield(self._look)
        except TimeoutError:
            checks = {"service": _SILENT}
        return {**checks, "service": "is ending"} if self._desk.ending.is_set() else checks

    async def _looked(self) -> dict[str, str]:
        checks = {"store": await self._store(), "disk": await asyncio.to_thread(self._disk)}
        return {**checks, **await asyncio.to_thread(self._desk.ready)}

    async def _store(self) -> str:
        try:
            async with asyncio.timeout(_STORE_SECONDS):
                await self._desk.store.ping()
        except (TimeoutError, StoreError) as error:
            log.warning("the store does not answer: %s", str(error) or "too slow")
            return _SILENT
        return "ok"

    def _disk(self) -> str:
        least = self._desk.config.troupe.governor.min_free_gib
        try:
            free = self._desk.data.free() / 2**30
        except OSError as error:
            log.warning("the data folder: %s", error)
            return _SILENT
        return "ok" if free >= least else f"{free:.1f} GiB are free, and lanes wait below {least:g}"


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    """Answered by the process alone."""
    return Health(status="ok", checks={})


@router.get(
    "/readyz",
    summary="Can the service work?",
    responses={503: {"model": Health, "description": "It cannot; `checks` says why."}},
)
async def readyz(request: Request, response: Response) -> Health:
    """Pins deployed, store reachable, disk free; looked at once a second at most."""
    readiness: Readiness = request.app.state.readiness
    checks = await readiness.checks()
    well = all(check == "ok" for check in checks.values())
    response.status_code = 200 if well else 503
    return Health(status="ok" if well else "unavailable", checks=checks)
