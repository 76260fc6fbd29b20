"""What a remote call raised, without Ray's wrapping."""

from __future__ import annotations

from ray.exceptions import RayTaskError


def cause_of(error: RayTaskError) -> BaseException:
    """The exception that the remote code raised; through chained calls, the first one's.

    Ray's own wrapper is an instance of the exception's class, but as a text it is the whole remote trace. An
    exception that could not be sent is left wrapped.
    """
    found: BaseException = error
    while isinstance(found, RayTaskError) and isinstance(found.cause, Exception):
        found = found.cause
    return found
