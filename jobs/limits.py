"""The configured limits in the units that the video modules use."""

from __future__ import annotations

from actors.video.limits import Limits
from cluster.config import Config


def limits_of(config: Config) -> Limits:
    """Bounds on one input, as configured."""
    settings = config.troupe.limits
    return Limits(
        max_bytes=int(settings.max_gib * 2**30),
        max_seconds=settings.max_hours * 3600,
        max_pixels=int(settings.max_megapixels * 1_000_000),
        max_streams=settings.max_streams,
        max_frames=settings.max_frames,
        stall_seconds=settings.stall_seconds,
        memory_bytes=int(settings.memory_gib * 2**30),
        decode_threads=config.troupe.batch.decode_threads,
    )
