"""The pin: a Serve replica that keeps models resident on a share of a GPU and runs chains of them.

`serve deploy ray-config.yaml` builds one application per pin with `actors.pin:build`; batch jobs and HTTP requests call
the same replicas through handles. Calls wait inside the replica (`max_ongoing_requests` is far above what callers send)
and run one at a time on the pin's execution thread, so the event loop always answers health checks and `describe`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve

from actors.catalogue import card
from actors.cpu import CPU_ENVIRONMENT
from actors.frames import Carry, FrameBatch
from actors.model import Dtype, Model, Setup, Step
from cluster.config import PinSettings
from cluster.errors import UsageError
from cluster.identity import code_hash
from cluster.pins import configured_pins
from cluster.preflight import placed
from cluster.processes import die_with_parent
from cluster.weights import StoredWeight, WeightsStore, default_folder

log = logging.getLogger("ray.serve")

#: More than all callers together keep in flight: what waits here can be ordered and cancelled, what waits in a
#: caller's router cannot.
MAX_ONGOING_REQUESTS = 1000


@dataclass(frozen=True, slots=True)
class Result:
    """What a call returns: the batch after the last step, each step's state after it, and seconds of work by model,
    those of the calls that made its source included.

    It travels whole: a later call takes it as its source (the batch) or as its state (the carries), unawaited.
    """

    batch: FrameBatch
    carries: tuple[Carry, ...]
    seconds: Mapping[str, float]


class Pin:
    """Keeps models loaded and runs steps of a chain on them.

    Args:
        settings: a validated `PinSettings`, as a mapping (Serve passes plain values).
        device: `cuda` or `cpu`, decided by the builder from what the cluster has.
        weights: folder of the weights store.
    """

    def __init__(self, settings: Mapping[str, Any], device: str, weights: str) -> None:
        die_with_parent()
        import torch

        self._settings = PinSettings.model_validate(settings)
        self._device = device
        if device == "cpu":
            torch.set_num_threads(self._settings.torch_threads or len(os.sched_getaffinity(0)))
        # TensorFloat-32 keeps 10 bits of a mantissa: who asks for single precision wants all 23.
        torch.backends.cudnn.allow_tf32 = False
        self._dtype: Dtype = (
            ("fp16" if device == "cuda" else "fp32") if self._settings.dtype == "auto" else (self._settings.dtype)
        )
        self._store = WeightsStore(Path(weights))
        self._models: OrderedDict[str, tuple[Model, tuple[StoredWeight, ...]]] = OrderedDict()
        self._loads = 0
        self._calls = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pin")
        for name in self._settings.preload:
            self._resident(Step(name))

    async def run(
        self, steps: Sequence[Mapping[str, Any]], source: FrameBatch | Result, state: Result | Sequence[Carry] | None
    ) -> Result:
        """Runs a chain of this pin's models on a batch.

        Args:
            steps: `Step`s as mappings, in order; each model must be one that the pin hosts.
            source: the batch, or an earlier call's whole result, whose batch is taken.
            state: the carries before this batch, one per step; an earlier call's whole result, whose carries are
                taken; or None at the start of a clip.

        Raises:
            TroupeError: a model is not hosted here or its weights are missing.
        """
        batch = source.batch if isinstance(source, Result) else source
        chain = [Step(**step) for step in steps]
        carries: Sequence[Carry] = state.carries if isinstance(state, Result) else (state or [{}] * len(chain))
        result = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, chain, batch, tuple(carries))
        return replace(result, seconds={**source.seconds, **result.seconds}) if isinstance(source, Result) else result

    async def describe(self, steps: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """What this pin is: process, device, settings, code and weights, and what is loaded.

        With `steps`, their models are loaded first, so that a job finds a missing checkpoint before it decodes, and
        their weights' hashes are in the answer.
        """
        loop = asyncio.get_running_loop()
        for step in steps:
            await loop.run_in_executor(self._thread, self._resident, Step(**step))
        weights = {weight.name: asdict(weight) for _, used in self._models.values() for weight in used}
        return {
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "device": self._device,
            "settings": self._settings.model_dump(),
            "pixels": self._settings.pixel_settings(),
            "code": code_hash("actors"),
            "weights": {name: {**entry, "path": str(entry["path"])} for name, entry in weights.items()},
            "models": list(self._models),
            "loads": self._loads,
            "calls": self._calls,
        }

    def _run(self, chain: list[Step], batch: FrameBatch, carries: tuple[Carry, ...]) -> Result:
        after: list[Carry] = []
        seconds: dict[str, float] = {}
        for step, carry in zip(chain, carries, strict=True):
            model = self._resident(step)
            begun = time.perf_counter()
            batch, state = model(batch, carry, step.params)
            seconds[step.model] = time.perf_counter() - begun
            after.append(state)
        self._calls += 1
        return Result(batch, tuple(after), seconds)

    def _resident(self, step: Step) -> Model:
        """The loaded model; loading happens on the execution thread only, so no call can be using what is unloaded."""
        key = f"{step.model} {sorted(step.load.items())}" if step.load else step.model
        if key in self._models:
            self._models.move_to_end(key)
            return self._models[key][0]
        if step.model not in self._settings.models:
            raise UsageError(
                f"pin {self._settings.name}",
                f"does not host {step.model}",
                remedy="add it to the pin's `models` and deploy it again",
            )
        entry = card(step.model)
        weights = tuple(self._store.find(name) for name in entry.weights)
        while len(self._models) >= self._settings.resident:
            gone, _ = self._models.popitem(last=False)
            log.info("pin %s: unloaded %s", self._settings.name, gone)
        setup = Setup(
            weights=tuple(weight.path for weight in weights),
            device=self._device,
            dtype=self._dtype,
            micro_batch=self._settings.micro_batch if self._device == "cuda" else 1,
            tile=self._settings.tile,
            options=step.load,
        )
        self._models[key] = (entry.load(setup), weights)
        self._loads += 1
        log.info("pin %s: loaded %s on %s as %s", self._settings.name, key, self._device, self._dtype)
        return self._models[key][0]


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
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
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
