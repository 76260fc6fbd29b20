"""Decoding processes for still images, started before they are needed, each for one image."""

from __future__ import annotations

import os
import threading
from collections import deque
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from actors.video import shared
from actors.video.image_header import Header
from actors.video.limits import Limits
from actors.video.process import Child
from cluster.errors import MediaError

#: Seconds between two looks for spares that died while they waited: an end to starting them anew at full speed, too.
LOOK_SECONDS = 1.0

_END_SECONDS = 5.0

Picture = NDArray[np.uint8]


class StillChild:
    """A process that decodes one image; its pixels come back in memory shared with it.

    Raises:
        MediaError: it did not start.
    """

    def __init__(self, limits: Limits) -> None:
        self._memory = shared.create("still")
        try:
            self._child = Child("still image", limits, memory=self._memory)
            self._child.send({"op": "still", "limits": limits.to_json()})
        except BaseException:
            os.close(self._memory)
            raise
        self._pixels, self._size = np.empty(0, np.uint8), (0, 0)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether it can be given an image."""
        return self._child.alive

    def give(self, data: bytes, name: str, header: Header) -> None:
        """Give it its image; afterwards whatever becomes of it is the image's doing.

        Raises:
            MediaError: it is gone; nothing has looked at the image yet.
        """
        self._child.name = name
        at, pixels = len(data), header.width * header.height
        whole = shared.sized(self._memory, at + 4 * pixels)
        whole[:at] = data
        self._pixels = np.frombuffer(whole, np.uint8, 4 * pixels, at)
        self._size = header.height, header.width
        self._child.send({"op": "image", "name": name, "bytes": at, "size": at + 4 * pixels})
        while self._child.receive()[0]["op"] != "begun":
            continue

    def take(self) -> tuple[Picture, Picture | None]:
        """RGB [H,W,3] and alpha [H,W] or None of the image given, upright.

        Raises:
            MediaError: the image cannot be decoded, or the process died of it or stalled.
        """
        answer, _ = self._child.receive()
        self._child.close()  # it can change nothing any more in what is handed on
        height, width = self._size if answer["height"] == self._size[0] else self._size[::-1]
        rgb, alpha = np.split(self._pixels, [3 * height * width])
        return rgb.reshape(height, width, 3), alpha.reshape(height, width) if answer["alpha"] else None

    def close(self) -> None:
        """Kill it and see it gone. Once."""
        self._child.close()
        os.close(self._memory)

    def __enter__(self) -> StillChild:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Spares:
    """Keeps `count` children started; a thread replaces those that were taken and those that died while they waited.

    They end with this process and with `close`. Waiting costs them nothing: only a child that was given an image can
    stall.
    """

    def __init__(self, limits: Limits, count: int) -> None:
        self._limits, self._count = limits, count
        self._waiting: deque[StillChild] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._keeper = threading.Thread(target=self._keep, name="keeps spares for still images", daemon=True)
        self._keeper.start()

    def take(self) -> StillChild:
        """The one that has waited longest, the caller's to close; one started now when there is none.

        Raises:
            MediaError: it could not be started.
        """
        dead = []
        found = None
        with self._changed:
            if self._closed:
                raise RuntimeError("the decoder for still images is closed")
            while found is None and self._waiting:
                first = self._waiting.popleft()
                if first.alive:
                    found = first
                else:
                    dead.append(first)
            self._changed.notify()
        for child in dead:
            child.close()
        return found or StillChild(self._limits)

    def pids(self) -> list[int]:
        """Of those that wait."""
        with self._changed:
            return [child.pid for child in self._waiting]

    def close(self) -> None:
        """End all that wait, and start no more. May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._keeper:  # which the garbage collector may run in
            self._keeper.join(_END_SECONDS)
        with self._changed:
            left = list(self._waiting)
            self._waiting.clear()
        for child in left:
            child.close()

    def _keep(self) -> None:
        while not self._closed:
            with self._changed:
                dead = [child for child in self._waiting if not child.alive]
                for child in dead:
                    self._waiting.remove(child)
                full = len(self._waiting) >= self._count
                if full and not self._closed:
                    self._changed.wait(LOOK_SECONDS)
            for child in dead:
                child.close()
            if not full:
                self._start()

    def _start(self) -> None:
        try:
            child = StillChild(self._limits)
        except MediaError:  # whoever asks next starts one and hears why not
            with self._changed:
                self._changed.wait(LOOK_SECONDS)
            return
        with self._changed:
            if not self._closed:
                self._waiting.append(child)
                return
        child.close()
