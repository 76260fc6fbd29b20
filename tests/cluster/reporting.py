"""A stand-in for everything that reports metrics, on a real Ray: a Serve replica that reports as a pin on a card does.

Run as a program it deploys itself on the Ray at RAY_ADDRESS, says `reporting`, and goes on until its input ends.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path
from typing import get_args

from cluster.calls import Priority
from cluster.metrics import CallerMetrics, GpuMetrics, JobMetrics, JobReading, PinMetrics, ServiceMetrics
from cluster.nvml import Card
from tests.cluster.test_nvml import Driver

PIN, MODEL, JOB = "reporting", "rvm-resnet50", "99000000"
READING = JobReading(
    frames=10,
    segments={"done": 3, "failed": 2, "quarantined": 1},
    videos={"running": 1},
    paused=1,
    fps=2.0,
    eta_s=3.0,
    disk_free=4,
)


class Everything:
    """Reports every metric of the table once, and its gauges again and again."""

    def __init__(self, refresh_seconds: float = 1.0) -> None:
        pin = PinMetrics(PIN)
        pin.replica_started()
        pin.replicas_lost()
        for priority in get_args(Priority):
            pin.ended(priority, "done", 0.02, 0.4)
        pin.queued(1, 7)
        pin.loaded(MODEL, 1, 4, 0)
        pin.unloaded("selfie", 1)
        pin.frames(MODEL, 8)
        pin.shrunk(MODEL, 2, 512)
        pin.vram(2 << 30, 3 << 30)
        pin.paused("GPU 0 at 84 °C, over 83")
        caller = CallerMetrics(PIN)
        caller.retried(3)
        caller.strike()
        self._pin, self._job, self._service = pin, JobMetrics(JOB), ServiceMetrics()
        self._gpu = GpuMetrics(Card("0", Driver()), Path(tempfile.mkdtemp()))
        self._tick()
        self._refresh_seconds = refresh_seconds
        threading.Thread(target=self._follow, daemon=True).start()

    def ready(self) -> bool:
        """True."""
        return True

    def _tick(self) -> None:
        self._pin.refresh()
        self._job.report(READING)
        self._gpu.report()
        self._service.tasks({"queued": 1})
        self._service.answered("GET", "/v1/tasks", 200, 0.01)

    def _follow(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._refresh_seconds):
            self._tick()


def _main() -> None:
    import ray
    from ray import serve as ray_serve

    ray.init(logging_level="ERROR", log_to_driver=False)
    ray_serve.start(proxy_location="Disabled")
    deployment = ray_serve.deployment(Everything, name=PIN, ray_actor_options={"num_cpus": 0.1})
    ray_serve.run(deployment.bind(), name=PIN, route_prefix=None)
    print("reporting", flush=True)
    sys.stdin.read()
    ray_serve.delete(PIN)


if __name__ == "__main__":
    _main()
