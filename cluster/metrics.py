"""Every metric of Troupe in one table, and the objects that pins, jobs and cards report through.

Ray collects what its processes report every ten seconds and offers it, for each node, on a metrics port, in
Prometheus' form and with `ray_` before each name (counters end in `_total` there). Measured on Ray 2.60:

* A gauge is gone twenty seconds after it was set last. So a group remembers its gauges, and `refresh` sets them again.
* A process that ends by itself hands in its last counts; one that is killed loses those of its last ten seconds.
* A histogram's buckets are exact; its `_sum`, and a mean made of it, is guessed from the buckets.
* What is reported before Ray is connected is lost, without an error. So all of this works, and does nothing, in a test.

The table is checked against `docs/metrics.md` and the dashboard under `cluster/monitoring`.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cluster.calls import Priority
from cluster.nvml import Card

#: Seconds: from a request on an idle pin to a batch call behind an overnight queue.
_WAIT = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Seconds: a frame on a fast card to a large batch on a CPU.
_RUN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table.

    Attributes:
        name: what Troupe reports.
        kind: a counter only grows; a gauge is a value now; a histogram counts values by size.
        tags: what tells its series apart, beside what Ray adds (`NodeAddress`, `WorkerId`, `SessionName`, …).
        description: what it counts, with its unit.
        buckets: upper edges of a histogram's.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    tags: tuple[str, ...]
    description: str
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """Its name at Ray's metrics port; a histogram's series have `_bucket`, `_count` and `_sum` after it."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


TABLE: tuple[Metric, ...] = (
    Metric("troupe_pin_queue_length", "gauge", ("pin", "class"), "Calls in the replica, waiting or begun."),
    Metric(
        "troupe_pin_wait_seconds",
        "histogram",
        ("pin", "class"),
        "Seconds from a call's arrival in the replica to its first turn.",
        _WAIT,
    ),
    Metric(
        "troupe_pin_run_seconds",
        "histogram",
        ("pin", "class"),
        "Seconds that a call had the pin to itself, all its turns together.",
        _RUN,
    ),
    Metric("troupe_pin_calls", "counter", ("pin", "class", "outcome"), "Calls that ended: done, failed or cancelled."),
    Metric("troupe_pin_frames", "counter", ("pin", "model"), "Frames that a model has done."),
    Metric("troupe_pin_micro_batch", "gauge", ("pin", "model"), "Frames that the network takes at once now."),
    Metric(
        "troupe_pin_tile",
        "gauge",
        ("pin", "model"),
        "Longest side in pixels that the network takes whole now; 0 when it takes any.",
    ),
    Metric("troupe_pin_vram_used_bytes", "gauge", ("pin",), "Memory of the GPU that the replica holds."),
    Metric("troupe_pin_vram_share_bytes", "gauge", ("pin",), "Memory of the GPU that the replica may hold."),
    Metric("troupe_pin_models", "gauge", ("pin",), "Models that are loaded."),
    Metric("troupe_pin_loads", "counter", ("pin", "model"), "Times that a model was loaded."),
    Metric("troupe_pin_unloads", "counter", ("pin", "model"), "Times that a model was unloaded."),
    Metric(
        "troupe_pin_out_of_memory_retries",
        "counter",
        ("pin", "model"),
        "Times that a call was tried again smaller after CUDA ran out of memory.",
    ),
    Metric(
        "troupe_pin_paused",
        "gauge",
        ("pin",),
        "1 while batch calls wait because the GPU is too hot, else 0.",
    ),
    Metric("troupe_pin_replicas_started", "counter", ("pin",), "Replicas that came up."),
    Metric("troupe_pin_replicas_lost", "counter", ("pin",), "Replicas that died, as told by those that came after."),
    Metric("troupe_pin_calls_retried", "counter", ("pin",), "Times that a lost call was sent again."),
    Metric("troupe_pin_strikes", "counter", ("pin",), "Times that a replica died of a call that had a known sender."),
    Metric("troupe_job_videos", "gauge", ("job_id", "state"), "Videos of the job by what is done with them."),
    Metric("troupe_job_lanes_paused", "gauge", ("job_id",), "Videos whose lanes wait because the disk is too full."),
    Metric("troupe_job_frames", "counter", ("job_id",), "Frames encoded."),
    Metric("troupe_job_segments", "counter", ("job_id", "state"), "Segments that ended: done, failed or quarantined."),
    Metric("troupe_job_frames_per_second", "gauge", ("job_id",), "Frames encoded a second since the first."),
    Metric("troupe_job_eta_seconds", "gauge", ("job_id",), "Seconds until the job is done, at this pace."),
    Metric("troupe_job_disk_free_bytes", "gauge", ("job_id",), "Room on the disk of the results."),
    Metric("troupe_service_tasks", "gauge", ("state",), "Tasks of the HTTP service that the store has, by state."),
    Metric(
        "troupe_service_requests", "counter", ("method", "route", "status"), "Requests that the HTTP service answered."
    ),
    Metric(
        "troupe_service_request_seconds",
        "histogram",
        ("method", "route"),
        "Seconds from a request's headers to its answer's last byte; event streams are left out.",
        _WAIT,
    ),
    Metric(
        "troupe_gpu_utilisation_ratio",
        "gauge",
        ("gpu", "uuid", "card"),
        "Share of the last moments in which the GPU computed, 0 to 1.",
    ),
    Metric("troupe_gpu_temperature_celsius", "gauge", ("gpu", "uuid", "card"), "Temperature of the GPU."),
    Metric("troupe_gpu_power_watts", "gauge", ("gpu", "uuid", "card"), "Power that the GPU draws."),
    Metric("troupe_gpu_memory_used_bytes", "gauge", ("gpu", "uuid", "card"), "Memory of the GPU in use, by everybody."),
    Metric("troupe_gpu_memory_total_bytes", "gauge", ("gpu", "uuid", "card"), "Memory of the GPU."),
    Metric("troupe_gpu_processes", "gauge", ("gpu", "uuid", "card"), "Processes with a context on the GPU."),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in TABLE}


@cache
def _reported(name: str) -> Any:
    """Ray's object for a metric, one a process."""
    # Ray is imported when something is reported: the table alone is read without it.
    from ray.util import metrics as ray_metrics

    metric = METRICS[name]
    if metric.kind == "histogram":
        return ray_metrics.Histogram(name, metric.description, list(metric.buckets), metric.tags)
    kind = ray_metrics.Counter if metric.kind == "counter" else ray_metrics.Gauge
    return kind(name, metric.description, metric.tags)


class _Group:
    """Metrics that share tags. What reports them may be called from any thread."""

    def __init__(self, **tags: str) -> None:
        self._tags = tags
        self._gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def refresh(self) -> None:
        """Sets every gauge again as it was set last; to be called every few seconds, or the gauges disappear."""
        for (name, tags), value in list(self._gauges.items()):
            _reported(name).set(value, tags=dict(tags))

    def _set(self, name: str, value: float | None, /, **tags: str) -> None:
        """Sets a gauge; None forgets it."""
        key = name, tuple({**self._tags, **tags}.items())
        if value is None:
            self._gauges.pop(key, None)
        else:
            self._gauges[key] = value
            _reported(name).set(value, tags=dict(key[1]))

    def _count(self, name: str, by: float = 1, /, **tags: str) -> None:
        if by > 0:
            _reported(name).inc(by, tags={**self._tags, **tags})

    def _observe(self, name: str, value: float, /, **tags: str) -> None:
        _reported(name).observe(value, tags={**self._tags, **tags})


class PinMetrics(_Group):
    """What a replica reports of itself. It calls `refresh` every few seconds.

    Args:
        pin: the pin's name.
    """

    def __init__(self, pin: str) -> None:
        super().__init__(pin=pin)

    def queued(self, interactive: int, batch: int) -> None:
        """How many calls are in the replica now, waiting or begun."""
        self._set("troupe_pin_queue_length", interactive, **{"class": "interactive"})
        self._set("troupe_pin_queue_length", batch, **{"class": "batch"})

    def ended(
        self, priority: Priority, outcome: Literal["done", "failed", "cancelled"], waited: float | None, ran: float
    ) -> None:
        """A call has ended.

        Args:
            priority: its class.
            outcome: `failed` by the model's own error; `cancelled` when nobody wanted it any more.
            waited: seconds from its arrival in the replica to its first turn; None when it never had one.
            ran: seconds of all its turns.
        """
        self._count("troupe_pin_calls", **{"class": priority, "outcome": outcome})
        if waited is not None:
            self._observe("troupe_pin_wait_seconds", waited, **{"class": priority})
            self._observe("troupe_pin_run_seconds", ran, **{"class": priority})

    def frames(self, model: str, count: int) -> None:
        """A model has done so many more frames."""
        self._count("troupe_pin_frames", count, model=model)

    def loaded(self, model: str, resident: int, micro_batch: int, tile: int) -> None:
        """A model was loaded: how many are now, and the sizes it works at."""
        self._count("troupe_pin_loads", model=model)
        self._set("troupe_pin_models", resident)
        self._sizes(model, micro_batch, tile)

    def unloaded(self, model: str, resident: int) -> None:
        """A model was unloaded: how many are left."""
        self._count("troupe_pin_unloads", model=model)
        self._set("troupe_pin_models", resident)
        self._sizes(model, None, None)

    def shrunk(self, model: str, micro_batch: int, tile: int) -> None:
        """CUDA ran out of memory; the call is tried again at these sizes."""
        self._count("troupe_pin_out_of_memory_retries", model=model)
        self._sizes(model, micro_batch, tile)

    def vram(self, used: int, share: int) -> None:
        """Bytes of the GPU that this process holds, and that it may hold."""
        self._set("troupe_pin_vram_used_bytes", used)
        self._set("troupe_pin_vram_share_bytes", share)

    def paused(self, reason: str | None) -> None:
        """Whether batch calls are held (`Governor.check`)."""
        self._set("troupe_pin_paused", 0 if reason is None else 1)

    def replica_started(self) -> None:
        """This replica takes calls from now on."""
        self._count("troupe_pin_replicas_started")

    def replicas_lost(self, count: int = 1) -> None:
        """So many replicas of this pin died since this was last reported, by this replica or another."""
        self._count("troupe_pin_replicas_lost", count)

    def _sizes(self, model: str, micro_batch: int | None, tile: int | None) -> None:
        self._set("troupe_pin_micro_batch", micro_batch, model=model)
        self._set("troupe_pin_tile", tile, model=model)


class CallerMetrics(_Group):
    """What those who call a pin report of it: a replica that died cannot.

    Args:
        pin: the pin's name.
    """

    def __init__(self, pin: str) -> None:
        super().__init__(pin=pin)

    def retried(self, calls: int) -> None:
        """So many calls were lost and are sent again."""
        self._count("troupe_pin_calls_retried", calls)

    def strike(self) -> None:
        """A replica died of a call."""
        self._count("troupe_pin_strikes")


@dataclass(frozen=True, slots=True)
class JobReading:
    """How far a job is.

    Attributes:
        frames: encoded in this job.
        segments: by state (`done`, `failed`, `quarantined`).
        videos: by what is done with them (`waiting`, `running`, `done`, …).
        paused: videos whose lanes wait for room.
        fps: frames a second since the first.
        eta_s: seconds left; None when nobody can tell yet.
        disk_free: bytes on the results' disk; None when it cannot be asked.
    """

    frames: int = 0
    segments: Mapping[str, int] = field(default_factory=dict)
    videos: Mapping[str, int] = field(default_factory=dict)
    paused: int = 0
    fps: float = 0.0
    eta_s: float | None = None
    disk_free: int | None = None


class JobMetrics(_Group):
    """What a job's driver reports, from what its lanes told it: one reporter a job, which outlives lanes that die.

    Args:
        job_id: Ray's, as the dashboard shows it.
    """

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id=job_id)
        self._before: dict[tuple[str, str], int] = {}

    def report(self, now: JobReading) -> None:
        """Reports a reading, at least every few seconds; what counts up is reported by its growth since the last."""
        for state in ("done", "failed", "quarantined"):
            self._grown("troupe_job_segments", now.segments.get(state, 0), state=state)
        self._grown("troupe_job_frames", now.frames)
        for state, videos in now.videos.items():
            self._set("troupe_job_videos", videos, state=state)
        self._set("troupe_job_lanes_paused", now.paused)
        self._set("troupe_job_frames_per_second", now.fps)
        self._set("troupe_job_eta_seconds", now.eta_s)
        self._set("troupe_job_disk_free_bytes", now.disk_free)

    def _grown(self, name: str, total: int, **tags: str) -> None:
        key = name, ",".join(tags.values())
        self._count(name, total - self._before.get(key, 0), **tags)
        self._before[key] = max(total, self._before.get(key, 0))


class ServiceMetrics(_Group):
    """What the HTTP service's ingress reports."""

    def tasks(self, counts: Mapping[str, int]) -> None:
        """Tasks by state; to be told every few seconds."""
        for state, count in counts.items():
            self._set("troupe_service_tasks", count, state=state)

    def answered(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """A request was answered.

        Args:
            method: of the request.
            route: the path as the application declares it, so that ids make no series of their own.
            status: HTTP status.
            seconds: until the last byte; None for an answer without a foreseeable end.
        """
        self._count("troupe_service_requests", method=method, route=route, status=str(status))
        if seconds is not None:
            self._observe("troupe_service_request_seconds", seconds, method=method, route=route)


class GpuMetrics(_Group):
    """What a card says of itself, reported by one of the processes on it.

    Several pins share a card. The first to come reports; when it ends, another takes over at its next `report`.

    Args:
        card: the card that this process computes on.
        folder: where the processes of this machine agree on who reports.
    """

    def __init__(self, card: Card, folder: Path | None = None) -> None:
        super().__init__()
        self._card = card
        self._folder = folder or Path(tempfile.gettempdir())
        self._lock: int | None = None

    def report(self) -> None:
        """Reports the card's sensors; nothing when another process does, or the card does not answer."""
        sensors = self._card.read()
        if sensors is None or not self._is_mine(sensors.uuid):
            return
        tags = {"gpu": str(sensors.index), "uuid": sensors.uuid, "card": sensors.name}
        for name, value in (
            ("troupe_gpu_utilisation_ratio", sensors.utilisation),
            ("troupe_gpu_temperature_celsius", sensors.temperature),
            ("troupe_gpu_power_watts", sensors.power),
            ("troupe_gpu_memory_used_bytes", sensors.memory_used),
            ("troupe_gpu_memory_total_bytes", sensors.memory_total),
            ("troupe_gpu_processes", None if sensors.processes is None else len(sensors.processes)),
        ):
            self._set(name, value, **tags)

    def _is_mine(self, uuid: str) -> bool:
        if self._lock is not None:
            return True
        try:
            lock = os.open(
                self._folder / f"troupe-{os.getuid()}-{uuid}.lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600
            )
        except OSError:
            return True  # nobody to agree with: twice is better than never, and queries take the largest
        try:
            # The kernel gives it up for a process that ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock = lock
        return True
