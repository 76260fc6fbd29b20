"""Checks of the machine and of Ray: what is wrong, and what to do about it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from cluster.errors import TroupeError
from cluster.nvml import Card
from cluster.session import FREE_OBJECTS, check_ray_version, connect

Severity = Literal["ok", "warn", "fail"]

_GB = 10**9
_CHILD_SECONDS = 120  # a first import of torch from a cold disk takes its time; a hung driver takes for ever
_STORE_SHARE = 0.3  # Ray's object store by default, of the memory
_STORE_IN_SHM = 10 * _GB  # above this size Ray shrinks the store to fit /dev/shm, below it moves the store to /tmp
_FREED_SECONDS = 0.4  # between the two that were measured: 3 ms when set, 1 s by Ray's default

# Run in a child, so that no CUDA context stays in this process. The addition finds a driver that lists a card and
# a torch build that knows it, and still cannot run on it.
_TORCH_PROBE = """
import json, torch
found = {"torch": torch.__version__, "built": torch.version.cuda, "devices": 0, "error": ""}
try:
    if torch.cuda.is_available():
        found["devices"] = torch.cuda.device_count()
        for index in range(found["devices"]):
            (torch.ones(1, device=f"cuda:{index}") + 1).item()
except Exception as error:
    found["error"] = (str(error).strip() or type(error).__name__).splitlines()[0]
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `troupe doctor`. `fail` means that jobs will not run, `warn` that some will not, or not well."""

    name: str
    status: Severity
    detail: str
    remedy: str = ""


def failed(name: str, error: TroupeError) -> Check:
    """The check that an error of ours ends."""
    return Check(
        name, "fail", ": ".join(part for part in (error.thing, error.place, error.reason) if part), error.remedy
    )


def check_packages(names: tuple[str, ...]) -> Check:
    """Python's version, and the installed versions of the packages that do the work."""
    found, absent = [f"Python {sys.version.split()[0]}"], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            absent.append(name)
    if absent:
        return Check("packages", "fail", f"{', '.join(absent)} not installed", f"pip install {' '.join(absent)}")
    return Check("packages", "ok", ", ".join(found))


@dataclass(frozen=True, slots=True)
class TorchFound:
    """What torch says in a process of its own.

    Attributes:
        torch: its version.
        built: CUDA version it was built for, None for a build without.
        devices: cards that it sees.
        error: why computing on them failed, empty if it did not.
    """

    torch: str
    built: str | None = None
    devices: int = 0
    error: str = ""


def check_gpu(visible_devices: str | None) -> Check:
    """Whether the NVIDIA cards that the driver lists are ones that torch can compute on.

    Args:
        visible_devices: value of CUDA_VISIBLE_DEVICES, None when it is not set.
    """
    found = _probe_torch()
    if isinstance(found, str):
        return Check("GPU", "fail", f"torch does not import: {found}", "reinstall torch")
    return judge_gpu(_nvidia_smi(), found, visible_devices)


def judge_gpu(cards: Sequence[str], found: TorchFound, visible_devices: str | None) -> Check:
    """Compares the driver's list of cards, a line each, with what torch found."""
    listed = "; ".join(cards)
    torch = f"torch {found.torch}"
    if found.error:
        detail = f"{torch} cannot compute on it ({listed or 'nvidia-smi lists none'}): {found.error}"
        remedy = "install the torch build for this card, or set CUDA_VISIBLE_DEVICES= to run on the CPU"
        return Check("GPU", "fail", detail, remedy)
    if found.devices:
        return Check("GPU", "ok", f"{listed or f'{found.devices} cards'}; {torch}")
    if not cards:
        return Check("GPU", "ok", "no NVIDIA GPU: pins run on the CPU")
    if visible_devices in ("", "-1"):
        return Check("GPU", "ok", f"{listed}; hidden by CUDA_VISIBLE_DEVICES: pins run on the CPU")
    if found.built is None:
        return Check("GPU", "warn", f"{listed}; {torch} is a build without CUDA", "install torch with CUDA")
    remedy = f"install a driver for CUDA {found.built} or newer, or a torch built for an older CUDA"
    return Check("GPU", "warn", f"{listed}; {torch} (CUDA {found.built}) does not see it", remedy)


def check_sensors(card: Card) -> Check:
    """What the card tells of itself, which the governor and the GPU's metrics rest on."""
    found = card.read()
    if found is None:
        return Check("GPU sensors", "ok", f"{card.absence}: heat limits nothing, no GPU metrics")
    told = [f"{found.name} (GPU {found.index})"]
    if found.temperature is not None:
        told.append(f"{found.temperature:.0f} °C")
    if found.power is not None:
        told.append(f"{found.power:.0f} W")
    if found.memory_used is not None and found.memory_total is not None:
        told.append(f"{found.memory_used / _GB:.1f} of {found.memory_total / _GB:.1f} GB in use")
    if found.temperature is None:
        told.append("no temperature, so that heat limits nothing")
        return Check("GPU sensors", "warn", ", ".join(told))
    return Check("GPU sensors", "ok", ", ".join(told))


def _nvidia_smi() -> list[str]:
    """One line a card: name, memory, driver. Empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_CHILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return ["nvidia-smi does not answer"]
    output = done.stdout if done.returncode == 0 else f"nvidia-smi: {done.stdout or done.stderr}"
    return [line.strip() for line in output.splitlines() if line.strip()]


def _probe_torch() -> TorchFound | str:
    """What the probe in a child process printed, or why it printed nothing."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, timeout=_CHILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_CHILD_SECONDS} s"
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return TorchFound(**json.loads(done.stdout.splitlines()[-1]))


def check_disk(name: str, folder: Path, *, warn_below: int = 10 * _GB, fail_below: int = _GB // 2) -> Check:
    """Whether a folder, which need not exist yet, can be written and has room (bytes)."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return Check(name, "fail", f"{there} is not a folder", "choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        return Check(name, "fail", f"{folder} cannot be written", "choose another folder, or change its permissions")
    free = shutil.disk_usage(there).free
    status: Severity = "fail" if free < fail_below else "warn" if free < warn_below else "ok"
    return Check(name, status, f"{free / _GB:.1f} GB free in {folder}", "" if status == "ok" else "make room there")


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or its control group's limit (version 2 or 1) if smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(limit)
        text = path.read_text().strip() if path.is_file() else "max"
        if text.isdecimal():
            total = min(total, int(text))
    return total


def check_memory(total: int, need: int = 8 * _GB) -> Check:
    """Whether there is the memory (bytes) that a small machine needs: Ray itself takes about 2 GB."""
    if total >= need:
        return Check("memory", "ok", f"{total / _GB:.1f} GB")
    return Check(
        "memory",
        "warn",
        f"{total / _GB:.1f} GB, of which Ray itself takes about 2",
        "lower troupe.batch.lanes, window and batch_mib",
    )


def check_shared_memory(memory: int, folder: Path = Path("/dev/shm")) -> Check:
    """Whether Ray's object store (a share of `memory` bytes) fits into shared memory; else Ray puts it on a disk."""
    wanted = min(int(memory * _STORE_SHARE), _STORE_IN_SHM)
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    if free >= wanted:
        return Check("shared memory", "ok", f"{free / _GB:.1f} GB free in {folder}")
    return Check(
        "shared memory",
        "warn",
        f"{free / _GB:.1f} GB free in {folder}, Ray's object store takes {wanted / _GB:.1f}: Ray would keep it in "
        "/tmp, where frames move at the disk's speed",
        f"enlarge {folder} (Docker: --shm-size={wanted / _GB:.0f}g)",
    )


def check_open_files(need: int = 8192) -> Check:
    """Whether enough files may be open at once; Ray raises the soft limit to the hard one by itself."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    allowed = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    if allowed >= need:
        return Check("open files", "ok", "no limit" if allowed == sys.maxsize else f"up to {allowed}")
    return Check("open files", "warn", f"up to {allowed}, Ray wants {need}", f"raise it: ulimit -n {need}")


def check_ray() -> tuple[Check, ...]:
    """Whether Ray starts, or the one at RAY_ADDRESS answers, and whether it frees dead objects at once."""
    try:
        check_ray_version()
        with connect() as session:
            where = "joined" if session.joined else "starts here"
            room = (
                f"{session.cpus:g} CPUs, {session.gpus:g} GPUs, object store {session.object_store_bytes / _GB:.1f} GB"
            )
            started = Check("Ray", "ok", f"{version('ray')} {where}: {room}")
            return (started, judge_freeing(measure_freeing()))
    except TroupeError as error:
        return (failed("Ray", error),)


def judge_freeing(seconds: float) -> Check:
    """Judges how long a dropped object stayed in the object store."""
    name = "object freeing"
    if seconds <= _FREED_SECONDS:
        return Check(name, "ok", f"a dropped object is gone after {seconds * 1000:.0f} ms on this node")
    settings = " ".join(f"RAY_{key}={value}" for key, value in FREE_OBJECTS.items())
    return Check(
        name,
        "warn",
        f"a dropped object stays {seconds:.1f} s on this node, so that dead frames fill the object store",
        f"start every node with `{settings} ray start …`; a job that joins cannot change it",
    )


def measure_freeing(rounds: int = 5, size: int = 8 * 2**20, wait_seconds: float = 3.0) -> float:
    """Median seconds from dropping an object to its bytes leaving this node's object store, `wait_seconds` at most.

    Measured, because nothing tells: the cluster's system config lacks what was set through the environment of
    `ray start`. Needs a connected Ray.
    """
    import numpy as np
    import ray
    from ray._private.internal_api import node_stats  # what `ray memory --stats-only` reads

    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)

    def used() -> int:
        stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)
        return int(stats.store_stats.object_store_bytes_used)

    payload = np.zeros(size, np.uint8)
    waits = []
    for _ in range(rounds):
        reference = ray.put(payload)
        filled = used()
        dropped = time.monotonic()
        del reference
        while (waited := time.monotonic() - dropped) < wait_seconds and used() > filled - size // 2:
            time.sleep(0.005)
        waits.append(waited)
    return statistics.median(waits)
