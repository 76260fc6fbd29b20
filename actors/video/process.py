"""Starting, hearing and ending the decoding process; every wait is bounded."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO

from actors.video.limits import Limits
from actors.video.wire import Message, Unpacker, pack
from cluster.errors import MediaError

_ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package `actors`
_END_SECONDS = 5.0  # for the kernel to take away a killed process


class Child:
    """One decoding process for one input.

    A thread starts it and waits for it: the kernel ties a child to the thread that started it (PR_SET_PDEATHSIG), and
    a process that is always waited for is never a zombie.
    """

    def __init__(self, path: Path, limits: Limits, pass_fds: tuple[int, ...] = ()) -> None:
        self._name, self._limits = path.name, limits
        self._unpacker = Unpacker()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._ended = threading.Event()
        started: SimpleQueue[subprocess.Popen[bytes] | OSError] = SimpleQueue()
        # A function, not a method: with the pipes in this object alone, the child ends when the object is dropped.
        arguments = (started, self._ended, self._stderr, pass_fds)
        threading.Thread(target=_mind, args=arguments, name=f"minds {path.name}", daemon=True).start()
        process = started.get()
        if isinstance(process, OSError):
            self._stderr.close()
            raise MediaError(self._name, f"cannot be decoded: the decoding process did not start: {process}")
        assert process.stdin is not None and process.stdout is not None
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
        process.stdin = process.stdout = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

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
            raise MediaError(self._name, message["reason"], place=message["place"], remedy=message["remedy"])
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
        self._stderr.close()

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
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            self.close()
            raise MediaError(
                self._name,
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
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        self.close()
        if code is not None and code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
            return MediaError(
                self._name,
                f"its decoder was ended by {name}{hint}",
                remedy="the file may be hostile: try to convert it first",
            )
        last = f": {lines[-1]}" if lines else ""
        return MediaError(self._name, f"its decoder ended with exit code {code}{last}")


def _mind(
    started: SimpleQueue[subprocess.Popen[bytes] | OSError],
    ended: threading.Event,
    stderr: IO[bytes],
    pass_fds: tuple[int, ...],
) -> None:
    """Start a decoding process, hand it over, wait until it is gone."""
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "actors.video.child", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=_ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except OSError as error:
        started.put(error)
        return
    started.put(process)
    process.wait()
    ended.set()
