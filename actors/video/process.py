"""Starting, hearing and ending the decoding process; every wait is bounded."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from types import TracebackType

from actors.video.beat import BEAT_SECONDS, Beat, nothing
from actors.video.forking import FORKS, Forks
from actors.video.limits import Limits
from actors.video.wire import NUMBER, Message, Unpacker, pack
from cluster.errors import MediaError

_END_SECONDS = 5.0  # for the kernel to take away a killed process
_LAST_WORDS = 1 << 16  # bytes of stderr that are kept: a pipe holds no more
_LAST_LINE = 500  # characters of its last line that an error tells

#: What ends a decoding process, as a user may want to know it.
_HINTS: dict[int, str] = {
    signal.SIGKILL: ", perhaps for want of memory",
    signal.SIGXCPU: ", for it took more CPU time than it may",
    signal.SIGXFSZ: ", for it wrote more than it may",
}


class Child:
    """One decoding process for one input. It ends with this object, too.

    Args:
        name: the input's, for errors.
        limits: `stall_seconds` bounds every wait.
        memory: the descriptor of memory that it shares; it has it as `wire.MEMORY`.
        beat: called about every `BEAT_SECONDS` while `receive` waits; may raise, and the child is then to be closed.
        forks: what starts it.

    Raises:
        MediaError: it did not start.
    """

    def __init__(
        self, name: str, limits: Limits, memory: int | None = None, beat: Beat = nothing, forks: Forks = FORKS
    ) -> None:
        self._name = name
        self._limits, self._beat = limits, beat
        self._unpacker = Unpacker()
        self._last_words = bytearray()
        self._code: int | None = None
        try:
            started = forks.start(memory)
        except OSError as error:
            raise MediaError(name, f"cannot be decoded: the decoding process did not start: {error}") from error
        self._pid, self._talk, self._words, self._life = started.pid, started.talk, started.words, started.life
        self._talk.settimeout(limits.stall_seconds)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._pid

    def send(self, message: Message) -> None:
        """Write one message."""
        try:
            self._talk.sendall(pack(message))
        except OSError as error:
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
        if self._words.closed:
            return
        self._talk.close()
        with contextlib.suppress(OSError):  # it has ended already
            self._life.shutdown(socket.SHUT_WR)  # for which its server kills it
        self._await_end()
        self._listen()
        self._life.close()
        self._words.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        deadline = time.monotonic() + self._limits.stall_seconds
        poll = select.poll()
        poll.register(self._talk, select.POLLIN)
        poll.register(self._words, select.POLLIN)
        while True:
            self._beat()
            left = max(0.0, deadline - time.monotonic())
            ready = [descriptor for descriptor, _ in poll.poll(min(left, BEAT_SECONDS) * 1000)]
            if self._talk.fileno() in ready:
                break
            if ready and not self._listen():
                poll.unregister(self._words)
            if left > 0:
                continue
            self.close()
            raise MediaError(
                self._name,
                f"its decoder stalled: no frame within {self._limits.stall_seconds:g} s",
                remedy="the file may be hostile or the machine overloaded; raise limits.stall_seconds to wait longer",
            )
        try:
            data = self._talk.recv(1 << 20)
        except ConnectionResetError:  # it ended without having read all
            data = b""
        if not data:
            raise self._gone()
        self._unpacker.feed(data)

    def _listen(self) -> bool:
        """Keep the last of what it has said on stderr; False when it can say no more.

        Through a pipe: a file on the disk would grow with what a hostile input makes its decoder say, and a process
        that may write no file (RLIMIT_FSIZE) could not say anything.
        """
        said = self._words.read(_LAST_WORDS)
        self._last_words += said or b""
        del self._last_words[:-_LAST_WORDS]
        return said != b""

    def _await_end(self) -> None:
        """Its exit code, once it has ended."""
        if self._code is not None or self._words.closed:
            return
        poll = select.poll()
        poll.register(self._life, select.POLLIN)
        if poll.poll(_END_SECONDS * 1000):
            told = self._life.recv(NUMBER.size)
            # Its server's end is its own.
            self._code = NUMBER.unpack(told)[0] if told else -signal.SIGKILL

    def _gone(self) -> MediaError:
        """What became of it."""
        self._await_end()
        code = self._code
        self.close()
        if code is not None and code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            hint = _HINTS.get(-code, "")
            return MediaError(
                self._name,
                f"its decoder was ended by {name}{hint}",
                remedy="the file may be hostile: try to convert it first",
            )
        lines = self._last_words.decode(errors="replace").strip().splitlines()
        last = f": {lines[-1][:_LAST_LINE]}" if lines else ""
        return MediaError(self._name, f"its decoder ended with exit code {code}{last}")
