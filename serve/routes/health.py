"""Whether the process lives, and whether the service can work."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from serve.desk import Desk
from serve.routes.access import TheDesk
from serve.schemas import Health
from serve.store import StoreError

router = APIRouter(tags=["health"])

_STORE_SECONDS = 5.0


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    """Answered by the process alone."""
    return Health(status="ok", checks={})


@router.get(
    "/readyz",
    summary="Can the service work?",
    responses={503: {"model": Health, "description": "It cannot; `checks` says why."}},
)
async def readyz(response: Response, desk: TheDesk) -> Health:
    """Pins deployed, store reachable, disk free."""
    checks = {"store": await _store(desk), "disk": await asyncio.to_thread(_disk, desk)}
    checks |= await asyncio.to_thread(desk.ready)
    if desk.ending.is_set():
        checks["service"] = "is ending"
    well = all(check == "ok" for check in checks.values())
    response.status_code = 200 if well else 503
    return Health(status="ok" if well else "unavailable", checks=checks)


async def _store(desk: Desk) -> str:
    try:
        async with asyncio.timeout(_STORE_SECONDS):
            await desk.store.ping()
    except TimeoutError:
        return "does not answer"
    except StoreError as error:
        return error.reason
    return "ok"


def _disk(desk: Desk) -> str:
    least = desk.config.troupe.governor.min_free_gib
    free = desk.data.free() / 2**30
    return "ok" if free >= least else f"{free:.1f} GiB are free, and lanes wait below {least:g}"
