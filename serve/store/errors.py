"""What the store refuses, each by a name that the front desk can turn into an answer."""

from __future__ import annotations

from cluster.errors import TroupeError, UsageError


class StoreError(TroupeError):
    """The database cannot be reached, does not answer in time, is damaged, full, or of a newer schema."""


class StoreBusyError(StoreError):
    """This process asks more of the database than it answers; nothing was done, and in a moment it may be."""


class TaskStateError(TroupeError):
    """The task is in a state in which this cannot be done, e.g. a retry of one that is still running."""


class QuotaError(TroupeError):
    """The owner has as many tasks queued or running as it may have."""


class KeyReusedError(TroupeError):
    """An idempotency key came again with another request (422 by draft-ietf-httpapi-idempotency-key-header-07, 2.7)."""


class KeyBusyError(TroupeError):
    """The first request with this idempotency key is still being handled, or was given up meanwhile (409, same)."""


class CursorError(UsageError):
    """A page's cursor is none that the store gave out."""
