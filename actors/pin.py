"""The pin: a Serve replica that keeps models resident on a share of a GPU and runs chains of them.

`serve deploy ray-config.yaml` builds one application per pin with `actors.pin:build`; batch jobs and HTTP requests call
the same replicas through handles. All waiting is in the replica (`max_ongoing_requests` is far above what callers
send): what waits here can be ordered and cancelled, what waits in a caller's router cannot. Calls are executed on a
thread of their own (`actors.performer`), so the event loop always answers health checks and `describe`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import ray
from ray import serve as ray_serve

from actors.catalogue import card
from actors.cpu import CPU_ENVIRONMENT
from actors.frames import Carry, FrameBatch
from actors.model import Dtype, Model, Setup, Step
from actors.residency import Residents
from actors.result import Result
from cluster.callboard import Callboard
from cluster.calls import Call, Priority
from cluster.config import PinSettings
from cluster.errors import ClusterError, UsageError
from cluster.executing import Executing
from cluster.governor import heat_governor
from cluster.identity import code_hash
from cluster.metrics import GpuMetrics, PinMetrics
from cluster.nvml import Card
from cluster.pins import configured_pins, told_once
from cluster.preflight import placed
from cluster.processes import die_with_parent
from cluster.weights import StoredWeight, WeightsStore, default_folder

if TYPE_CHECKING:
    from actors.performer import Work

log = logging.getLogger("ray.serve")

#: Set in the environment where Ray was told of GPUs that are not there, to try out how pins share them.
LOGICAL_GPUS = "TROUPE_LOGICAL_GPUS"

Outcome = Literal["done", "failed", "cancelled"]

#: More than all callers together keep in flight.
MAX_ONGOING_REQUESTS = 1000
#: How often a replica tells its state, and looks for models that were idle for long.
_TELL_SECONDS = 1.0
#: Serve replaces a replica after three failed checks, and gives it so long to end.
_HEALTH_CHECK_SECONDS = 2.0
_SHUTDOWN_SECONDS = 5.0


class Pin:
    """Keeps models loaded and runs steps of a chain on them.

    Args:
        settings: a validated `PinSettings`, as a mapping (Serve passes plain values).
        device: `cuda` or `cpu`, decided by the builder from what the cluster has.
        weights: folder of the weights store.
    """

    def __init__(self, settings: Mapping[str, Any], device: str, weights: str) -> None:
        die_with_parent()
        self._settings = PinSettings.model_validate(settings)
        # First, because what ends a replica asks for them, one that did not come up too.
        self._replica = ray.get_runtime_context().get_actor_id()
        self._board = Callboard()
        self._writing = Executing(self._replica)
        # Here and below, not above: who deploys a pin imports this module too, and need not wait for torch.
        import torch

        from actors import cuda
        from actors.performer import Performer

        if device == "cuda" and not torch.cuda.is_available():
            if LOGICAL_GPUS not in os.environ:
                raise ClusterError(
                    f"pin {self._settings.name}",
                    "Ray counts a GPU here, and torch sees none",
                    remedy="see `troupe doctor`; start Ray with --num-gpus 0 to work on the CPU",
                )
            log.warning("pin %s: a GPU in Ray's books alone, its models run on the CPU", self._settings.name)
            device = "cpu"
        self._device = device
        self._share = self._settings.num_gpus or 0.0
        if device == "cpu":
            torch.set_num_threads(self._settings.torch_threads or len(os.sched_getaffinity(0)))
        else:
            cuda.fence(self._share)
        # TensorFloat-32 keeps 10 bits of a mantissa: who asks for single precision wants all 23.
        torch.backends.cudnn.allow_tf32 = False
        self._dtype: Dtype = (
            ("fp16" if device == "cuda" else "fp32") if self._settings.dtype == "auto" else (self._settings.dtype)
        )
        self._store = WeightsStore(Path(weights))
        self._weights: dict[str, tuple[StoredWeight, ...]] = {}
        self._calls = 0
        self._card = Card(cuda.uuid() if device == "cuda" else "")
        self._governor = heat_governor(self._settings.governor, self._card)
        self._metrics, self._gpu = PinMetrics(self._settings.name), GpuMetrics(self._card)
        self._loading = ""
        self._residents: Residents[Model] = Residents(self._settings.resident, self._unloaded)
        self._performer = Performer(
            self._settings.name,
            self._residents,
            self._load,
            max_call_s=self._settings.max_call_ms / 1000,
            watch=self,
            share=self._share,
        )
        for name in self._settings.preload:
            self._residents.take([name], lambda key: self._load(Step(key)))
            self._residents.give_back([name])
        self._metrics.replica_started()
        self._metrics.replicas_lost(self._board.take_over(self._settings.name, self._replica))
        threading.Thread(target=self._tell, name="teller", daemon=True).start()

    def __del__(self) -> None:
        # Serve calls it when it ends a replica on purpose: that one is not lost.
        self._board.leave(self._replica)
        self._writing.remove()

    async def run(
        self,
        steps: Sequence[Mapping[str, Any]],
        source: FrameBatch | Result,
        state: Result | Sequence[Carry] | None,
        call: Call | None = None,
    ) -> Result:
        """Runs a chain of this pin's models on a batch.

        Args:
            steps: `Step`s as mappings, in order; each model must be one that the pin hosts.
            source: the batch, or an earlier call's whole result, whose batch is taken.
            state: the carries before this batch, one per step; an earlier call's whole result, whose carries are
                taken; or None at the start of a clip.
            call: its class and identity; a batch call of nobody where not given.

        Raises:
            DeferredError: the pin runs a call alone; make this one again in a moment.
            TroupeError: a model is not hosted here, its weights are missing, or GPU memory ran out for good.
        """
        batch = source.batch if isinstance(source, Result) else source
        chain = [Step(**step) for step in steps]
        carries: Sequence[Carry] = state.carries if isinstance(state, Result) else (state or [{}] * len(chain))
        work = await self._performer.perform(chain, batch, carries, call or Call())
        assert work.parted is not None
        assert work.waited is not None
        earlier = source if isinstance(source, Result) else None
        made, after = work.parted.result
        return Result(
            made,
            after,
            {**(earlier.seconds if earlier else {}), **work.parted.seconds},
            work.waited,
            work.ran,
            (*(earlier.notices if earlier else ()), *work.notices),
        )

    async def describe(self, steps: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """What this pin is: process, device, settings, code and weights, and what is loaded.

        With `steps`, their models are loaded first, so that a job finds a missing checkpoint before it decodes, and
        their weights' hashes are in the answer.
        """
        if steps:
            await self._performer.load([Step(**step) for step in steps])
        weights = {weight.name: asdict(weight) for used in self._weights.values() for weight in used}
        return {
            **self._state(),
            "settings": self._settings.model_dump(),
            "pixels": self._settings.pixel_settings(),
            "code": code_hash("actors"),
            "weights": {name: {**entry, "path": str(entry["path"])} for name, entry in weights.items()},
        }

    def check_health(self) -> None:
        """Raises when the call that is being executed will never end; Serve asks, and replaces the replica then."""
        working = self._performer.working_s
        if working > self._settings.call_timeout_s:
            reason = f"a call has been at work for {working:.0f} s"
            self._writing.ends(reason)
            raise ClusterError(
                f"pin {self._settings.name}",
                reason,
                remedy=f"it is replaced; raise call_timeout_s ({self._settings.call_timeout_s:g}) if that is normal",
            )

    def _state(self) -> dict[str, Any]:
        turns, residents = self._performer.turns, self._residents
        context = ray.get_runtime_context()
        return {
            "pin": self._settings.name,
            "pid": os.getpid(),
            "node": context.get_node_id(),
            "gpus": [str(gpu) for gpu in context.get_accelerator_ids().get("GPU", [])],
            "device": self._device,
            "models": list(residents.keys),
            "loading": self._loading,
            "loads": residents.loads,
            "unloads": residents.unloads,
            "calls": self._calls,
            "waiting": {priority: turns.count(priority) for priority in get_args(Priority)},
            "held": turns.held,
            "sensors": self._card.absence or "read",
        }

    def _tell(self) -> None:
        """On a thread of its own: a driver that hangs must not stop calls."""
        while True:
            try:
                self._tell_once()
            except Exception:  # whatever it was: a pin that is not seen, or held for ever, is worse
                log.exception("pin %s: could not tell its state", self._settings.name)
            time.sleep(_TELL_SECONDS)

    def _tell_once(self) -> None:
        held = self._governor.check() or ""
        self._performer.hold(held)
        self._writing.keep()
        self._board.tell(self._replica, self._state())
        self._metrics.queued(self._performer.turns.count("interactive"), self._performer.turns.count("batch"))
        self._metrics.paused(held or None)
        self._metrics.refresh()
        self._gpu.report()
        if self._device == "cuda":
            from actors import cuda

            self._metrics.vram(*cuda.memory(self._share))
        if self._settings.idle_unload_s:
            self._performer.unload_idle(self._settings.idle_unload_s)

    def turn_begins(self, work: Work) -> None:
        """Writes down outside of this process what it executes (`actors.performer.Watch`)."""
        self._writing.write(work.call.token)

    def failed(self, error: Exception) -> None:
        """Ends a process to which CUDA is lost (`actors.performer.Watch`): every later call would fail with it.

        Its callers see a death, not an error of the model: they repeat their calls on the replica that comes up.
        """
        from actors import cuda

        if isinstance(error, RuntimeError) and cuda.is_lost():
            reason = f"CUDA is lost to its process ({str(error).splitlines()[0]})"
            log.error("pin %s: %s", self._settings.name, reason)
            self._writing.ends(reason)
            os._exit(1)

    def ended(self, work: Work) -> None:
        """Counts a call (`actors.performer.Watch`)."""
        if work.waited is not None:
            self._writing.write("")
        if work.parted is None:
            return
        future = work.future
        outcome: Outcome = "cancelled" if future.cancelled() else "failed" if future.exception() else "done"
        self._metrics.ended(work.call.priority, outcome, work.waited, work.ran)
        if work.call.request:
            models = ", ".join(step.model for step in work.steps)
            waited = 0.0 if work.waited is None else work.waited
            log.info(
                "request %s: %s %s, waited %.3f s, ran %.3f s", work.call.request, models, outcome, waited, work.ran
            )
        if outcome == "done":
            self._calls += 1
            for step in work.steps:
                self._metrics.frames(step.model, work.parted.frames)

    def shrunk(self, step: Step, model: Model) -> None:
        """Counts an out-of-memory (`actors.performer.Watch`)."""
        self._metrics.shrunk(step.model, getattr(model, "micro_batch", 1), getattr(model, "tile", 0))

    def _load(self, step: Step) -> Model:
        if step.model not in self._settings.models:
            raise UsageError(
                f"pin {self._settings.name}",
                f"does not host {step.model}",
                remedy="add it to the pin's `models` and deploy it again",
            )
        entry = card(step.model)
        weights = tuple(self._store.find(name) for name in entry.weights)
        setup = Setup(
            weights=tuple(weight.path for weight in weights),
            device=self._device,
            dtype=self._dtype,
            micro_batch=self._settings.micro_batch if self._device == "cuda" else 1,
            tile=self._settings.tile,
            options=step.load,
        )
        self._loading = step.model
        try:
            model = entry.load(setup)
        finally:
            self._loading = ""
        self._weights[step.key] = weights
        self._metrics.loaded(
            step.model, len(self._residents.keys) + 1, getattr(model, "micro_batch", 1), getattr(model, "tile", 0)
        )
        log.info("pin %s: loaded %s on %s as %s", self._settings.name, step.key, self._device, self._dtype)
        return model

    def _unloaded(self, key: str) -> None:
        self._weights.pop(key, None)
        self._metrics.unloaded(key.partition(" ")[0], len(self._residents.keys))
        log.info("pin %s: unloaded %s", self._settings.name, key)


@told_once
def build(args: dict[str, Any]) -> ray_serve.Application:
    """The Serve application of one pin; on a cluster without GPUs it runs on a CPU and says so.

    Args:
        args: a `PinSettings` as a mapping; a share and a number of replicas that it leaves open are filled in.

    Raises:
        RoomError: it does not fit, together with the other pins of the same file that `serve deploy` brings up.
    """
    settings, device = placed(PinSettings.model_validate(args), configured_pins())
    if device == "cpu" and settings.num_gpus != 0:
        log.warning("pin %s: no GPU in this cluster, its models run on the CPU", settings.name)
    weights = str(default_folder(os.environ).resolve())
    deployment = ray_serve.deployment(
        Pin,
        name=settings.name,
        num_replicas=settings.replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=_HEALTH_CHECK_SECONDS,
        graceful_shutdown_timeout_s=_SHUTDOWN_SECONDS,
        ray_actor_options={
            "num_cpus": settings.num_cpus,
            "num_gpus": settings.num_gpus if device == "cuda" else 0,
            "runtime_env": {"env_vars": CPU_ENVIRONMENT if device == "cpu" else {}},
        },
    )
    # Serve replaces replicas whose version changes, and would take a new one for each deployment: so one that is
    # deployed again as it was, or with another number of replicas, keeps those that run.
    same = [settings.model_dump(exclude={"replicas"}), device, weights, code_hash("actors", "cluster")]
    version = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]
    deployment = deployment.options(version=version, _internal=True)
    return deployment.bind(settings.model_dump(), device, weights)
