"""Messages between a decoding process and its parent: a JSON head and bytes, both with their lengths before them."""

from __future__ import annotations

import json
import struct
from typing import Any

#: What the fork server tells of a child, a packet each.
NUMBER = struct.Struct("i")

#: The descriptor of shared memory in a child that was given some.
MEMORY = 3

_HEAD = struct.Struct(">II")

Message = dict[str, Any]


def pack(message: Message, blob: bytes = b"") -> bytes:
    """The bytes of one message."""
    text = json.dumps(message, separators=(",", ":")).encode()
    return b"".join((_HEAD.pack(len(text), len(blob)), text, blob))


class Unpacker:
    """Messages out of bytes that arrive in any pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        self._buffer += data

    def next(self) -> tuple[Message, bytes] | None:
        """One message, or None while it is incomplete."""
        if len(self._buffer) < _HEAD.size:
            return None
        text, blob = _HEAD.unpack_from(self._buffer)
        end = _HEAD.size + text + blob
        if len(self._buffer) < end:
            return None
        message = json.loads(bytes(self._buffer[_HEAD.size : _HEAD.size + text]))
        payload = bytes(self._buffer[_HEAD.size + text : end])
        del self._buffer[:end]
        return message, payload
