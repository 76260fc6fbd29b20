"""`troupe profile`: measures what models take on this machine, each in a process of its own."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from actors.catalogue import CARDS, card
from actors.model import Card, Dtype
from actors.profiling import Measured, Order, measure, orders
from cli.manners import exit_codes, print_json, say_error
from cluster.cards import local_cards
from cluster.config import Config, PinSettings, frame_size, load_config
from cluster.errors import ClusterError, Exit, UsageError
from cluster.health import memory_bytes
from cluster.profiles import Profile, read_profile, shipped_profile, write_profile
from cluster.tables import as_table
from cluster.weights import default_store

_MIB = 2**20
#: What is measured where nothing is asked for: on a GPU what clips have; on a CPU what ends within minutes.
_FRAMES = {"cuda": ("480p", "720p", "1080p"), "cpu": ("480p",)}


def profile(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="By default every model of a pin with its weights here.")
    ] = None,
    frames: Annotated[
        list[str] | None, typer.Option("--frame", metavar="SIZE", help="480p, 720p, 1080p, … or WxH; may be repeated.")
    ] = None,
    micro_batches: Annotated[
        list[int] | None, typer.Option("--micro-batch", min=1, help="Frames at once; may be repeated.")
    ] = None,
    tile: Annotated[int | None, typer.Option("--tile", min=0, help="Instead of the pin's.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="fp32, fp16 or bf16, instead of the pin's.")] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cuda or cpu; by default cuda if there is one.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long calls are timed.")] = 3.0,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Longest measurement, in seconds.")] = 600.0,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="By default ray-config.yaml here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Measure load time, memory and milliseconds a frame; kept in the cache folder, where the budget finds them."""
    with exit_codes():
        found = load_config(config)
        where = _device(device)
        entries = _entries(models)
        todo = [
            order
            for entry in entries
            for order in _orders(entry, found, where, frames, micro_batches, tile, dtype, seconds)
        ]
        measured, failed = _measure_all(todo, timeout, quiet=as_json)
        kept = _keep(where, measured)
    if as_json:
        rows = [each.figure.model_dump() for each in measured]
        print_json({"device": kept.device, "measured": rows, "failed": failed, "path": str(_path(kept))})
    else:
        print("\n".join(_table(measured)))
        print(f"kept in {_path(kept)}")
    raise typer.Exit(Exit.SOME_FAILED if failed else Exit.DONE)


def _device(asked: str | None) -> str:
    cards = local_cards(os.environ)
    if asked not in (None, "cpu", "cuda"):
        raise UsageError("--device", f"{asked} is none", remedy="give cuda or cpu")
    if asked == "cuda" and not cards:
        raise UsageError("--device cuda", "there is no NVIDIA GPU here", remedy="see `troupe doctor`")
    return asked or ("cuda" if cards else "cpu")


def _entries(names: Sequence[str] | None) -> list[Card]:
    """The models asked for.

    Raises:
        UsageError: one is unknown, runs in the lane, or its weights are missing; says how to fetch them.
    """
    store = default_store(os.environ)
    if names:
        entries = [card(name) for name in dict.fromkeys(names)]
        light = [entry.name for entry in entries if not entry.resident]
        if light:
            raise UsageError(light[0], "runs in the lane and takes nothing of a GPU", remedy="see `troupe models`")
        missing = list(store.missing([name for entry in entries for name in entry.weights]))
    else:
        entries = [each for each in CARDS.values() if each.resident and not list(store.missing(each.weights))]
        missing = [] if entries else [name for each in CARDS.values() if each.resident for name in each.weights]
    if missing:
        raise UsageError(
            "weights",
            f"{', '.join(missing)} are not here and nothing is downloaded unasked",
            remedy=f"run `troupe weights fetch {' '.join(missing)}`",
        )
    return entries


def _orders(
    entry: Card,
    config: Config,
    device: str,
    frames: Sequence[str] | None,
    micro_batches: Sequence[int] | None,
    tile: int | None,
    dtype: str | None,
    seconds: float,
) -> list[Order]:
    pin = next((pin for pin in config.pins if entry.name in pin.models), PinSettings(name="none", models=(entry.name,)))
    names = frames or tuple(dict.fromkeys((*_FRAMES[device], *((pin.frame,) if device == "cuda" else ()))))
    try:
        sizes = [frame_size(name) for name in names]
    except ValueError as error:
        raise UsageError("--frame", str(error), remedy="give 720p and the like, or WxH") from error
    chosen = dtype or pin.dtype
    if chosen == "auto":
        chosen = "fp16" if device == "cuda" else "fp32"
    if chosen not in ("fp32", "fp16", "bf16"):
        raise UsageError("--dtype", f"{chosen} is none", remedy="give fp32, fp16 or bf16")
    default = sorted({1, pin.micro_batch}) if device == "cuda" else [1]
    store = default_store(os.environ)
    settings: dict[str, Any] = {
        "model": entry.name,
        "device": device,
        "dtype": _as_dtype(chosen),
        "tile": pin.tile if tile is None else tile,
        "seconds": seconds,
    }
    return orders(settings, [store.find(name).path for name in entry.weights], sizes, micro_batches or default)


def _as_dtype(name: str) -> Dtype:
    return "fp32" if name == "fp32" else "fp16" if name == "fp16" else "bf16"


def _measure_all(todo: Sequence[Order], timeout: float, *, quiet: bool) -> tuple[list[Measured], dict[str, str]]:
    """One after the other; one that fails does not stop the rest."""
    measured: list[Measured] = []
    failed: dict[str, str] = {}
    console = Console(stderr=True, soft_wrap=True)
    for order in todo:
        what = f"{order.model} {order.width}x{order.height}, micro-batch {order.micro_batch}"
        if not quiet:
            console.print(f"measuring {what} on {order.device}", markup=False, highlight=False)
        try:
            measured.append(measure(order, timeout))
        except ClusterError as error:
            failed[what] = str(error)
            say_error(error)
    return measured, failed


def _keep(device: str, measured: Sequence[Measured]) -> Profile:
    """Adds the figures to what is known of this device."""
    cards = local_cards(os.environ) if device == "cuda" else ()
    name = cards[0].name if cards else _cpu_name()
    total = cards[0].total_mib if cards else memory_bytes() // _MIB
    known = read_profile(os.environ, name)
    contexts = [each.context_mib for each in measured if each.context_mib is not None]
    context = max(contexts) if contexts else known.context_mib if known else shipped_profile().context_mib
    if device == "cpu":
        context = 0
    note = "measured by `troupe profile`"
    start = Profile(device=name, total_mib=total, context_mib=context, estimated=False, note=note)
    kept = (known or start).model_copy(update={"total_mib": total, "context_mib": context})
    kept = kept.with_figures(each.figure for each in measured)
    if measured:
        write_profile(os.environ, kept)
    return kept


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _path(kept: Profile) -> Path:
    from cluster.profiles import profile_path

    return profile_path(os.environ, kept.device)


def _table(measured: Sequence[Measured]) -> list[str]:
    head = ("model", "frame", "at once", "tile", "dtype", "load s", "resident MiB", "peak MiB", "ms a frame")
    rows = [
        (
            f.model,
            f"{f.width}x{f.height}",
            str(f.micro_batch),
            str(f.tile or "-"),
            f.dtype,
            f"{f.load_s:.2f}",
            f"{f.resident_mib:.0f}",
            f"{f.peak_mib:.0f}",
            f"{f.ms:.1f}",
        )
        for f in (each.figure for each in measured)
    ]
    return as_table(head, rows) if rows else []
