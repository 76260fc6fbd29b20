"""Fork servers of this process, which start its decoding processes: started when first needed, anew when gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType

from actors.video.wire import NUMBER

_ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package `actors`
_START_SECONDS = 60.0  # for the server and a child to start on a machine that is busy
_TRIES = 2  # the second with a new server
_NOTHING: Mapping[str, str] = MappingProxyType({})
_LAST_WORDS = 4096  # bytes of the server's stderr that are kept


@dataclass(frozen=True, slots=True)
class Started:
    """A child: its process id, the socket to it, what it says on stderr (not blocking), and its server's word of it."""

    pid: int
    talk: socket.socket
    words: FileIO
    life: socket.socket


class Forks:
    """Starts children, from any number of threads.

    Args:
        module: what they need besides what all do.
        environ: what they find in their environment besides this process's.
    """

    def __init__(self, module: str = "", environ: Mapping[str, str] = _NOTHING) -> None:
        self._module, self._environ = module, environ
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._closed = False

    def start(self, memory: int | None) -> Started:
        """Start one, as `actors.video.fork_server` says.

        Args:
            memory: the descriptor of memory to share.

        Raises:
            OSError: it could not be started.
            RuntimeError: closed already.
        """
        for _ in range(_TRIES):
            server = self._current()
            try:
                return server.fork(memory)
            except (ConnectionError, TimeoutError) as error:
                gone = error
                with self._lock:
                    if self._server is server:
                        self._server = None
        raise OSError(f"the server that starts it is gone: {server.last_words() or gone}")

    def warm_up(self) -> None:
        """Have the server started before somebody waits for it; errors as of `start`."""
        self._current()

    def close(self) -> None:
        """Start no more; the server ends with its last child. May be called again."""
        with self._lock:
            self._closed, self._server = True, None

    def _current(self) -> _Server:
        with self._lock:
            if self._closed:
                raise RuntimeError("the decoder is closed")
            if self._server is None:
                self._server = _Server(self._module, self._environ)
            return self._server


class _Server:
    """A started server; it ends with this object."""

    def __init__(self, module: str, environ: Mapping[str, str]) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests.settimeout(_START_SECONDS)
        self._words, self._ended = bytearray(), threading.Event()
        started: SimpleQueue[OSError | None] = SimpleQueue()
        # A thread starts it and waits for it: the kernel ties a process to the thread that started it
        # (PR_SET_PDEATHSIG), and one that is always waited for is never a zombie.
        arguments = (module, environ, theirs, started, self._words, self._ended)
        threading.Thread(target=_mind, args=arguments, name="minds the fork server", daemon=True).start()
        if error := started.get():
            raise error

    def fork(self, memory: int | None) -> Started:
        """As `Forks.start`; ConnectionError or TimeoutError when the server is gone or does not answer."""
        talk, its_talk = socket.socketpair()
        life, its_life = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end, its_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        words, its_words = FileIO(end), FileIO(its_end, "w")
        os.set_blocking(its_end, True)
        with its_talk, its_life, its_words:
            given = [its_talk.fileno(), its_words.fileno(), its_life.fileno()]
            socket.send_fds(self._requests, [b"\0"], given if memory is None else [*given, memory])
        life.settimeout(_START_SECONDS)
        told = life.recv(NUMBER.size)
        if not told:
            raise ConnectionResetError("it ended")
        (number,) = NUMBER.unpack(told)
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        return Started(number, talk, words, life)

    def last_words(self) -> str:
        """The last line that it said on stderr, once it has ended."""
        self._ended.wait(1)
        return (self._words.decode(errors="replace").strip().splitlines() or [""])[-1]


def _mind(
    module: str,
    environ: Mapping[str, str],
    theirs: socket.socket,
    started: SimpleQueue[OSError | None],
    words: bytearray,
    ended: threading.Event,
) -> None:
    """Start a server, wait until it is gone, and keep the last of what it says."""
    try:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "actors.video.fork_server", str(os.getpid()), module],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=_ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environ},
                start_new_session=True,
            )
    except OSError as error:
        started.put(error)
        return
    started.put(None)
    assert process.stderr is not None
    with process.stderr as stderr:
        while said := os.read(stderr.fileno(), _LAST_WORDS):
            words += said
            del words[:-_LAST_WORDS]
    process.wait()
    ended.set()


#: Where videos are decoded.
FORKS = Forks()
