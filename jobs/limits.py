"""The configured limits in the units that the video modules use."""

from __future__ import annotations

from actors.video.limits import Limits
from cluster.config import Config

#: CPU seconds for starting a decoder, and for each second of a short clip: one for each of 60 frames a second.
_CPU_START, _CPU_PER_SECOND = 60, 60


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
        cpu_seconds=settings.cpu_hours * 3600,
    )


def for_short_clips(config: Config) -> Config:
    """The configuration for clips of at most `service.on_demand_seconds`, whose decoders get less CPU time."""
    seconds = _CPU_START + _CPU_PER_SECOND * config.troupe.service.on_demand_seconds
    limits = config.troupe.limits
    shorter = limits.model_copy(update={"cpu_hours": min(limits.cpu_hours, seconds / 3600)})
    return config.model_copy(update={"troupe": config.troupe.model_copy(update={"limits": shorter})})
