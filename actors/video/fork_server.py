"""Starts decoding processes: `python -m actors.video.fork_server`, one in each process that opens media.

A Python with av and numpy takes 0.1 s of CPU time to start, a fork of one that has them some milliseconds. This one
reads no input and keeps no answer, so that each child starts as clean as a fresh process would; what they have in
common is the layout of their memory. It has no threads, which a fork would lose.

A request is a packet with the descriptors of the child's end of `talk` and `words`, of this server's end of `life`, and
perhaps of shared memory. `life` tells the child's process id (negative: the `errno` for which there is none) and, when
it has ended, its exit code (negative: the signal). Should the other end of `life` close, the child is killed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path

from actors.video import child
from actors.video.wire import MEMORY, NUMBER
from cluster.processes import die_with_parent

_DESCRIPTORS = 4  # talk, words, life, memory


class Server:
    """Forks, kills and reaps.

    Args:
        requests: a SOCK_SEQPACKET; its end is the server's.
    """

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._lives: dict[int, socket.socket] = {}
        # Signals come as bytes, so that one wait hears of everything.
        self._signals, self._signalled = socket.socketpair()
        self._signalled.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)
        self._selector.register(self._signals, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve until the requests end, and then until the last child has."""
        wanted = True
        while wanted or self._lives:
            for key, _ in self._selector.select():
                if key.fileobj is self._requests:
                    _, descriptors, _, _ = socket.recv_fds(self._requests, 1, _DESCRIPTORS)
                    if wanted := bool(descriptors):
                        self._fork(*descriptors)
                    else:
                        self._selector.unregister(self._requests)
                elif key.fileobj is self._signals:
                    self._signals.recv(1 << 12)
                    self._reap()
                elif self._lives.get(key.data) is key.fileobj:  # its other end was closed
                    self._selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)

    def _fork(self, talk: int, words: int, life: int, *memory: int) -> None:
        told = socket.socket(fileno=life)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            pid = -(error.errno or 1)
        if pid == 0:
            _live(parent, talk, words, memory)
        for descriptor in (talk, words, *memory):
            os.close(descriptor)
        _tell(told, pid)
        if pid < 0:
            told.close()
            return
        self._lives[pid] = told
        self._selector.register(told, selectors.EVENT_READ, pid)

    def _reap(self) -> None:
        while self._lives:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            life = self._lives.pop(pid)
            if life in self._selector.get_map():
                self._selector.unregister(life)
            _tell(life, os.waitstatus_to_exitcode(status))
            life.close()


def _tell(life: socket.socket, number: int) -> None:
    try:
        life.send(NUMBER.pack(number))
    except (BrokenPipeError, ConnectionResetError):  # nobody wants to know
        return


def _live(parent: int, talk: int, words: int, memory: tuple[int, ...]) -> None:
    """The forked process: descriptors 0 to 2 are its own, 3 is the memory, there are no others. Does not return."""
    code = 1
    try:
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # What prints goes to `words`, and cannot disturb the messages.
        for own, given in enumerate((talk, words, words, *memory)):
            os.dup2(given, own)
        _close_from(MEMORY + len(memory))
        child.serve(child.Link(0))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _close_from(first: int) -> None:
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) >= first:
            with contextlib.suppress(OSError):  # the list's own, which is closed by now
                os.close(int(entry.name))


def main() -> None:
    """Entry point; the arguments are the parent's process id and a module that the children need, or nothing."""
    die_with_parent(int(sys.argv[1]))
    if module := sys.argv[2]:
        importlib.import_module(module).warm_up()
    gc.freeze()  # or the children's collections would touch, and so copy, all of it
    Server(socket.socket(fileno=0)).run()


if __name__ == "__main__":
    main()
