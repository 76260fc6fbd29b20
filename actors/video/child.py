"""What a decoding process does, which `actors.video.fork_server` starts for `actors.video.process`.

It alone touches input media, so that a decoder's crash, endless loop or appetite costs one file. Requests come in and
answers go out on one socket (`actors.video.wire`), frames through shared memory. It ends when the socket does. It
imports av and numpy alone, to start quickly; for still images OpenCV too.
"""

from __future__ import annotations

import math
import mmap
import os
import resource
import select
import signal
import sys
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np

from actors.video.colour import Converter
from actors.video.info import MediaInfo
from actors.video.limits import Limits
from actors.video.names import check_path
from actors.video.playback import Playback
from actors.video.sound_extract import extract
from actors.video.survey import first_frame, survey
from actors.video.wire import MEMORY, Message, Unpacker, pack
from cluster.errors import MediaError

_BEAT_SECONDS = 0.2

#: CPU seconds after the first signal at which the kernel kills, should that not have ended the process.
_CPU_GRACE = 5

#: CPU seconds for one still image: some times what 36 million pixels of the slowest kind take.
_STILL_CPU_SECONDS = 30

#: Bytes that a copy needs for each of its source's (small NAL units grow by their longer start), and for its headers.
_COPY, _HEADERS = 2, 16 * 2**20

#: Bytes a second that encoded sound may add: four tracks of eight channels.
_ENCODED = 4 * 8 * 96_000 // 8


class Link:
    """The child's end of the socket `descriptor`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unpacker = Unpacker()

    def send(self, message: Message, blob: bytes = b"") -> None:
        """Write one message."""
        rest = memoryview(pack(message, blob))
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def receive(self, *, wait: bool) -> Message | None:
        """The next message; None when there is none yet and `wait` is False. Ends the process with its parent."""
        while (found := self._unpacker.next()) is None:
            if not wait and not select.select([self._descriptor], [], [], 0)[0]:
                return None
            data = os.read(self._descriptor, 1 << 16)
            if not data:
                raise SystemExit(0)
            self._unpacker.feed(data)
        return found[0]


class Pulse:
    """Tells the parent now and then that work goes on, so that only a stall looks like one."""

    def __init__(self, link: Link) -> None:
        self._link, self._last = link, time.monotonic()

    def beat(self, message: Message) -> None:
        """Send it, unless one was sent just before."""
        now = time.monotonic()
        if now - self._last > _BEAT_SECONDS:
            self._last = now
            self._link.send(message)


def confine(memory_bytes: int, cpu_seconds: int, file_bytes: int) -> None:
    """Bound what this process may take, for good; no core files.

    Args:
        memory_bytes: of the heap. RLIMIT_AS would count the shared memory of a Ray worker as well.
        cpu_seconds: of all threads, since the start. The process ends with SIGXCPU.
        file_bytes: size of any file it writes. The process ends with SIGXFSZ, as it does by default, which Python
            changes to an error that libraries would report as their own.
    """
    sys.dont_write_bytecode = True  # importing a module late would write a file
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    _bound(resource.RLIMIT_DATA, memory_bytes)
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_CPU, cpu_seconds, _CPU_GRACE)
    _bound(resource.RLIMIT_FSIZE, file_bytes)


def _bound(kind: int, most: int, grace: int = 0) -> None:
    """Set a limit, or keep the lower one that this process was started with."""
    _, hard = resource.getrlimit(kind)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    hard = soft + grace if hard == resource.RLIM_INFINITY else min(soft + grace, hard)
    resource.setrlimit(kind, (soft, hard))


def serve(link: Link) -> None:
    """Answer one request; errors that the user can act on are sent, others end the process with a traceback."""
    av.logging.set_level(None)
    request = link.receive(wait=True)
    assert request is not None
    limits = Limits.from_json(request["limits"])
    try:
        match request["op"]:
            case "inspect":
                _inspect(link, _admitted(request, limits), limits)
            case "scan":
                _scan(link, _admitted(request, limits, copies=_COPY), limits, request)
            case "decode":
                _decode(link, _admitted(request, limits), limits, request)
            case "sound":
                encoded = math.ceil(_ENCODED * limits.max_seconds)
                _sound(link, _admitted(request, limits, copies=_COPY, encoded=encoded), limits, request)
            case "still":
                _still(link, limits, request)
    except MediaError as error:
        parts = {"reason": error.reason, "place": error.place, "remedy": error.remedy}
        link.send({"op": "error", **parts})
    except MemoryError:
        reason = f"needs more memory to decode than the limit of {limits.memory_bytes} bytes"
        remedy = "scale it down, or raise limits.memory_bytes"
        link.send({"op": "error", "reason": reason, "place": "", "remedy": remedy})


def _admitted(request: Message, limits: Limits, *, copies: int = 0, encoded: int = 0) -> Path:
    """The input's path, with this process confined to what working on it may take.

    Args:
        copies: how many of its bytes may be written for each of the input's.
        encoded: bytes that may be written besides.
    """
    path = Path(request["path"])
    written = copies * check_path(path, limits).stat().st_size + encoded + _HEADERS if copies else 0
    confine(limits.memory_bytes, limits.most_cpu_seconds, written)
    return path


def _inspect(link: Link, path: Path, limits: Limits) -> None:
    info, frame = first_frame(path, limits)
    converter = Converter(info)
    for pairs in (converter.push(frame, None), converter.flush()):
        for _, rgb in pairs:
            link.send({"op": "done", "info": info.to_json()}, rgb.tobytes())
            return


def _scan(link: Link, path: Path, limits: Limits, request: Message) -> None:
    pulse = Pulse(link)

    def beat(frames: int) -> None:
        pulse.beat({"op": "progress", "frames": frames})

    head, arrays = survey(
        path,
        limits,
        allow_damaged=request["allow_damaged"],
        workdir=Path(request["workdir"]),
        partial=Path(request["partial"]),
        beat=beat,
    )
    link.send({"op": "done", **head}, arrays)


def _sound(link: Link, path: Path, limits: Limits, request: Message) -> None:
    tracks = extract(path, Path(request["target"]), limits, lambda seconds: link.send({"op": "beat", "at": seconds}))
    link.send({"op": "done", "tracks": [asdict(track) for track in tracks]})


def _decode(link: Link, path: Path, limits: Limits, request: Message) -> None:
    info = MediaInfo.from_json(request["info"])
    slots: int = request["slots"]
    ring = mmap.mmap(MEMORY, slots * info.width * info.height * 3)
    pictures = np.frombuffer(ring, np.uint8).reshape(slots, info.height, info.width, 3)
    free = deque(range(slots))
    pulse = Pulse(link)
    playback = Playback(
        path, info, limits, damaged=request["damaged"], beat=lambda: pulse.beat({"op": "skipping", "run": run})
    )
    frames, run = None, 0
    while True:
        while (message := link.receive(wait=frames is None or not free)) is not None:
            if message["op"] == "play":
                frames, run = playback.play(message["index"], message["pts"]), message["run"]
            else:
                free.extend(message["slots"])
        assert frames is not None
        shown = next(frames, None)
        if shown is None:
            frames = None
            link.send({"op": "end", "run": run})
            continue
        index, pts, rgb = shown
        slot = free.popleft()
        pictures[slot] = rgb
        link.send({"op": "frame", "run": run, "index": index, "pts": pts, "slot": slot})


def _still(link: Link, limits: Limits, request: Message) -> None:
    confine(limits.memory_bytes, min(limits.most_cpu_seconds, _STILL_CPU_SECONDS), 0)
    from actors.video import image  # with OpenCV, which videos do without: loaded already

    memory, at = mmap.mmap(MEMORY, 0), request["bytes"]
    rgb, alpha = image.decode_image(memory[:at], request["name"])
    for plane in (rgb, alpha):
        if plane is not None:
            memory[at : at + plane.nbytes] = plane.data
            at += plane.nbytes
    link.send({"op": "done", "height": rgb.shape[0], "alpha": alpha is not None})
