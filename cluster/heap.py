"""Freed memory of this process, given back to the kernel."""

from __future__ import annotations

import ctypes


def give_back_freed() -> None:
    """Returns what malloc keeps of freed blocks (glibc; nothing elsewhere). Takes milliseconds.

    An encoder of every segment and a decoder of every range leave holes in the heaps of several threads, which glibc
    gives back only from a heap's end: a lane would grow for as long as its video lasts.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
