"""Memory that this process shares with one decoding process, which may turn hostile."""

from __future__ import annotations

import fcntl
import mmap
import os


def create(name: str) -> int:
    """The descriptor of an empty piece, to be passed to the child; the caller closes it."""
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def sized(memory: int, size: int) -> mmap.mmap:
    """Give it its final size in bytes and map it.

    The size is sealed: a child that shrank it would end this process with SIGBUS at its next look.
    """
    os.ftruncate(memory, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return mmap.mmap(memory, size)
