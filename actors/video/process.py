"""Starting, hearing and ending the decoding process; every wait is bounded."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

from actors.video.beat import BEAT_SECONDS, Beat, nothing
from actors.video.limits import Limits
from actors.video.wire import Message, Unpacker, pack
from cluster.errors import MediaError

_ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package `actors`
_END_SECONDS = 5.0  # for the kernel to take away a killed process
_LAST_WORDS = 1 << 16  # bytes of stderr that are kept

#: What ends a decoding process, as a user may want to know it.
_HINTS: dict[int, str] = {
    signal.SIGKILL: ", perhaps for want of memory",
    signal.SIGXCPU: ", for it took more CPU time than it may",
    signal.SIGXFSZ: ", for it wrote more than it may",
}


class Child:
    """One decoding process for one input.

    A thread starts it and waits for it: the kernel ties a child to the thread that started it (PR_SET_PDEATHSIG), and
    a process that is always waited for is never a zombie.

    Args:
        name: the input's, for errors. It can be set later.
        limits: `stall_seconds` bounds every wait.
        pass_fds: file descriptors that it inherits.
        beat: called about every `BEAT_SECONDS` while `receive` waits; may raise, and the child is then to be closed.

    Raises:
        MediaError: it did not start.
    """

    def __init__(self, name: str, limits: Limits, pass_fds: tuple[int, ...] = (), beat: Beat = nothing) -> None:
        self.name = name
        self._limits, self._beat = limits, beat
        self._unpacker = Unpacker()
        self._last_words = bytearray()
        self._ended = threading.Event()
        started: SimpleQueue[subprocess.Popen[bytes] | OSError] = SimpleQueue()
        # A function, not a method: with the pipes in this object alone, the child ends when the object is dropped.
        arguments = (started, self._ended, self._last_words, pass_fds)
        threading.Thread(target=_mind, args=arguments, name=f"minds {name}", daemon=True).start()
        process = started.get()
        if isinstance(process, OSError):
            raise MediaError(name, f"cannot be decoded: the decoding process did not start: {process}")
        assert process.stdin is not None and process.stdout is not None
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
        process.stdin = process.stdout = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return not self._ended.is_set()

    def send(self, message: Message) -> None:
        """Write one small message."""
        try:
            self._stdin.write(pack(message))
            self._stdin.flush()
        except (BrokenPipeError, OSError, ValueError) as error:
            raise self._gone() from error

    def receive(self) -> tuple[Message, bytes]:
        """The next message.

        Raises:
            MediaError: it is one, or the process died, or nothing came within `limits.stall_seconds`.
        """
        while (found := self._unpacker.next()) is None:
            self._read()
        message, blob = found
        if message["op"] == "error":
            self.close()
            raise MediaError(self.name, message["reason"], place=message["place"], remedy=message["remedy"])
        return message, blob

    def close(self) -> None:
        """Kill it and see it gone. May be called again."""
        for pipe in (self._stdin, self._stdout):
            try:
                pipe.close()
            except OSError:  # what was still to be written has no reader any more
                continue
        self._process.kill()
        self._ended.wait(_END_SECONDS)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        deadline = time.monotonic() + self._limits.stall_seconds
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        while True:
            self._beat()
            left = max(0.0, deadline - time.monotonic())
            if poll.poll(min(left, BEAT_SECONDS) * 1000):
                break
            if left > BEAT_SECONDS:
                continue
            self.close()
            raise MediaError(
                self.name,
                f"its decoder stalled: no frame within {self._limits.stall_seconds:g} s",
                remedy="the file may be hostile or the machine overloaded; raise limits.stall_seconds to wait longer",
            )
        data = os.read(self._stdout.fileno(), 1 << 20)
        if not data:
            raise self._gone()
        self._unpacker.feed(data)

    def _gone(self) -> MediaError:
        """What became of it."""
        self._ended.wait(_END_SECONDS)
        code = self._process.returncode
        lines = self._last_words.decode(errors="replace").strip().splitlines()
        self.close()
        if code is not None and code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            hint = _HINTS.get(-code, "")
            return MediaError(
                self.name,
                f"its decoder was ended by {name}{hint}",
                remedy="the file may be hostile: try to convert it first",
            )
        last = f": {lines[-1]}" if lines else ""
        return MediaError(self.name, f"its decoder ended with exit code {code}{last}")


def _mind(
    started: SimpleQueue[subprocess.Popen[bytes] | OSError],
    ended: threading.Event,
    last_words: bytearray,
    pass_fds: tuple[int, ...],
) -> None:
    """Start a decoding process, hand it over, wait until it is gone, and keep the last of what it says on stderr.

    Through a pipe: a file on the disk would grow with what a hostile input makes its decoder say, and a process that
    may write no file (RLIMIT_FSIZE) could not say anything.
    """
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "actors.video.child", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=_ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except OSError as error:
        started.put(error)
        return
    assert process.stderr is not None
    stderr, process.stderr = process.stderr, None
    started.put(process)
    with stderr:
        while said := os.read(stderr.fileno(), _LAST_WORDS):
            last_words += said
            del last_words[:-_LAST_WORDS]
    process.wait()
    ended.set()
