"""What goes on beside requests: webhooks are sent, old results removed, hopeless tasks ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from cluster.metrics import ServiceMetrics
from serve.desk import Desk
from serve.folders import Ended
from serve.store import Delivery, StoreError, TaskState
from serve.transfer.webhooks import Outcome, Webhooks, message, told

log = logging.getLogger(__name__)

_COUNT_SECONDS, _SWEEP_SECONDS, _TIDY_SECONDS, _RETENTION_SECONDS, _WEBHOOK_SECONDS = 5.0, 10.0, 20.0, 600.0, 0.5
_SENDERS = 16  # which only wait
_DELIVERY_LEASE_SECONDS = 30.0
_PAGE = 200

Chore = Callable[[], Awaitable[object]]


@asynccontextmanager
async def upkeep(desk: Desk) -> AsyncIterator[None]:
    """Does it while the context lasts; several processes at once do no harm."""
    metrics = ServiceMetrics()
    chores: list[tuple[Chore, float]] = [
        (desk.store.sweep, _SWEEP_SECONDS),
        (lambda: _count(desk, metrics), _COUNT_SECONDS),
        (lambda: _tidy(desk), _TIDY_SECONDS),
        (lambda: _retain(desk), _RETENTION_SECONDS),
    ]
    sending = set[asyncio.Task[None]]()
    if desk.signer is not None:
        webhooks = Webhooks(desk.client, desk.signer)
        chores.append((lambda: _send_due(desk, webhooks, sending), _WEBHOOK_SECONDS))
    else:
        chores.append((lambda: _give_up(desk), _SWEEP_SECONDS))
    running = [asyncio.create_task(_again_and_again(chore, pause)) for chore, pause in chores]
    try:
        yield
    finally:
        for each in (ending := [*running, *sending]):
            each.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


async def _again_and_again(chore: Chore, pause: float) -> None:
    while True:
        await _tried(chore)
        await asyncio.sleep(pause)


async def _tried(chore: Chore) -> None:
    try:
        await chore()
    except StoreError as error:
        log.warning("upkeep: %s", error)
    except Exception:  # whatever it was: the next time may go better, and the others go on
        log.exception("upkeep failed")


async def _count(desk: Desk, metrics: ServiceMetrics) -> None:
    metrics.tasks({str(state): count for state, count in (await desk.store.counts()).items()})


async def _send_due(desk: Desk, webhooks: Webhooks, sending: set[asyncio.Task[None]]) -> None:
    """Sends what is due until nothing is; `sending` is what is on its way, also after an error."""
    while True:
        while len(sending) < _SENDERS and (delivery := await desk.store.claim_delivery(_DELIVERY_LEASE_SECONDS)):
            task = asyncio.create_task(_tried(partial(_send, desk, webhooks, delivery)))
            sending.add(task)
            task.add_done_callback(sending.discard)
        if not sending:
            return
        await asyncio.wait(sending, timeout=_WEBHOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)


async def _give_up(desk: Desk) -> None:
    """What is owed while there is no secret would be owed for ever, and its tasks kept for ever."""
    if given_up := await desk.store.give_up_deliveries("the server has no webhook secret"):
        log.warning("%d webhooks are given up: %s is not set", given_up, desk.service.webhook_secret_env)


async def _send(desk: Desk, webhooks: Webhooks, delivery: Delivery) -> None:
    body = message(f"task.{delivery.message['state']}", delivery.created, told(delivery.message))
    attempt = await webhooks.send(delivery.url, delivery.id, body, delivery.attempts - 1)
    delivered = attempt.outcome is Outcome.DELIVERED
    log.log(
        logging.INFO if delivered else logging.WARNING,
        "webhook %s: %s (%s)",
        delivery.id,
        attempt.outcome,
        attempt.reason,
    )
    await desk.store.settle_delivery(
        delivery, delivered=delivered, retry_s=attempt.pause, answer={"reason": attempt.reason}
    )


async def _tidy(desk: Desk) -> None:
    """Removes what those who ended tasks did not come to remove, being killed: of done tasks all but the result, of
    cancelled ones everything."""
    for task_id, state in (await desk.store.states(await asyncio.to_thread(desk.data.unfinished))).items():
        if state is TaskState.DONE:
            await asyncio.to_thread(desk.data.keep_result, task_id)
        # Asked again: it may have been retried while others were tidied.
        elif state is TaskState.CANCELLED and (await desk.store.states([task_id])).get(task_id) is state:
            await asyncio.to_thread(desk.data.remove, task_id)


async def _retain(desk: Desk) -> None:
    """Tasks that ended too long ago go with their files; the oldest go first when all are too large. Then what crashes
    left is removed."""
    service = desk.service
    before = datetime.now(UTC) - timedelta(days=service.keep_days)
    while await _purge(desk, before=before):
        pass
    ended = [each async for each in _ended(desk)]
    chosen = await asyncio.to_thread(desk.data.excess, ended, service.keep_gib * 2**30)
    for first in range(0, len(chosen), _PAGE):
        await _purge(desk, ids=chosen[first : first + _PAGE])
    known = await desk.store.states(await asyncio.to_thread(desk.data.ids))
    await asyncio.to_thread(desk.data.sweep, known.__contains__)


async def _purge(desk: Desk, **which: Any) -> bool:
    """Removes tasks with their files, the rows first: the store knows which were retried meanwhile, or are owed."""
    gone = await desk.store.purge(**which)
    for task_id in gone:
        await asyncio.to_thread(desk.data.remove, task_id)
    return bool(gone)


async def _ended(desk: Desk) -> AsyncIterator[Ended]:
    for state in (TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED):
        cursor = None
        while True:
            page = await desk.store.page(None, state=state, cursor=cursor, limit=_PAGE)
            for task in page.tasks:
                if task.finished is not None:
                    yield Ended(task.id, task.finished)
            if (cursor := page.cursor) is None:
                break
