"""What an input may cost before it is refused."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one untrusted input file; past any of them it is refused with a `MediaError`.

    Attributes:
        max_bytes: size of the file.
        max_seconds: duration, by the container's header and by the decoded times.
        max_pixels: width x height of a frame, coded and as displayed.
        max_streams: streams in the container, of all kinds.
        max_frames: decoded video frames.
        stall_seconds: longest wait for one frame or message of the decoding process before it is killed.
        memory_bytes: heap of the decoding process (RLIMIT_DATA).
        decode_threads: codec threads of a decoding process.
    """

    max_bytes: int = 20 * 2**30
    max_seconds: float = 4 * 3600.0
    max_pixels: int = 8192 * 4320
    max_streams: int = 32
    max_frames: int = 2_000_000
    stall_seconds: float = 60.0
    memory_bytes: int = 4 * 2**30
    decode_threads: int = 2

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the decoding process."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Limits:
        """The inverse of `to_json`."""
        return cls(**data)
