"""Running a generator ahead of its consumer in a thread: the bounded queue between the parts of a lane."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1
_JOIN_SECONDS = 5


@contextmanager
def ahead(
    items: Iterator[T], depth: int, name: str, on_read: Callable[[], None] = lambda: None
) -> Iterator[Iterator[T]]:
    """Yields the same items, made in a thread that is at most `depth` items ahead.

    An exception of the generator is raised where its next item would have been. On leaving the context the thread
    is told to stop and the generator is closed there, so its own cleanup runs.

    Args:
        items: a generator or any iterator; used from one thread only.
        depth: queued items; with the one being made, `depth + 1` are in memory.
        name: the thread's, for stack dumps.
        on_read: called before every item and again and again while the reader waits for one; may raise.
    """
    lane: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                lane.put(entry, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    break
            else:
                put((None, StopIteration()))
        except BaseException as error:
            put((None, error))
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def read() -> Iterator[T]:
        while not stop.is_set():
            on_read()
            try:
                item, error = lane.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # None only comes with an error
        # The reader is another thread of the same pipe; what it makes of the missing rest must not look like the end.
        raise RuntimeError(f"{name} was stopped")

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield read()
    finally:
        stop.set()
        thread.join(_JOIN_SECONDS)
