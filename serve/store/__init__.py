"""The durable store: tasks, their queue, events, webhooks owed and idempotency keys, in SQLite, MySQL or PostgreSQL."""

from serve.store.errors import CursorError, KeyBusyError, KeyReusedError, QuotaError, StoreError, TaskStateError
from serve.store.store import Store
from serve.store.values import (
    Claim,
    Delivery,
    Document,
    Event,
    Heartbeat,
    NewTask,
    Page,
    Quota,
    Remembered,
    Reservation,
    Task,
    TaskState,
    Usage,
    is_id,
    new_id,
)

__all__ = [
    "Claim",
    "CursorError",
    "Delivery",
    "Document",
    "Event",
    "Heartbeat",
    "KeyBusyError",
    "KeyReusedError",
    "NewTask",
    "Page",
    "Quota",
    "QuotaError",
    "Remembered",
    "Reservation",
    "Store",
    "StoreError",
    "Task",
    "TaskState",
    "TaskStateError",
    "Usage",
    "is_id",
    "new_id",
]
