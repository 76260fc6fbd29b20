"""How fast the bare networks are on this machine: frames per second, memory, share of the measured matmul peak.

    python -m bench.networks                                   the models' networks, 480p, 720p, 1080p, every mode
    python -m bench.networks --networks 'rvm-*' --sizes 1080p,576x1024 --modes channels_last,cuda_graph --json
    python -m bench.networks --networks '*' --sizes own --modes eager --half --seconds 600
                                                               every network at the size that it is meant to work at

Needs torch and numpy alone. Weights are random: speed does not depend on them. A frame is in memory, as the network
wants it, before the clock starts; decoding, colour, copies and resizing are not in these figures.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.environment import run_as_pin
from bench.subjects import MATTE, SUBJECTS, UPSCALE, Call, Inputs, Scale

SIZES = {"480p": (640, 480), "720p": (1280, 720), "1080p": (1920, 1080)}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#: `compiled` and `cuda_graph` are each on top of channels_last.
MODES = ("eager", "channels_last", "compiled", "cuda_graph")
#: The size that a network is meant to work at.
OWN = "own"
#: Steps are timed in chunks of about this many seconds, so that launching work ahead of the GPU counts as it does in
#: a running job.
CHUNK_SECONDS = 0.1
_PLAIN = "--plain"

Step = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Cell:
    """What to measure."""

    network: str
    size: str
    mode: str
    batch: int
    device: str
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured. Figures are None where `note` says why there are none, or nobody asked.

    Attributes:
        parameters: millions of them.
        tflop: of one frame; None where it takes numbers to count and there were none.
        share: of the matmul peak.
        peak_mib: at most allocated, weights included: of CUDA's memory, or of the process's on a CPU.
        half_error: the largest difference that fp16 makes, in parts of the output's largest value.
    """

    network: str
    size: str
    mode: str
    parameters: float
    tflop: float | None = None
    fps: float | None = None
    ms: float | None = None
    share: float | None = None
    peak_mib: float | None = None
    half_error: float | None = None
    note: str = ""


def build(name: str, size: tuple[int, int], batch: int, device: str, dtype: torch.dtype) -> tuple[nn.Module, Inputs]:
    """A network with random weights and the inputs of one step; the same numbers each time."""
    subject, (width, height) = SUBJECTS[name], size
    torch.manual_seed(0)
    with torch.device(device):
        network = subject.build().eval()
        fill(network)
        network.to(dtype)
        return Call(subject, network), subject.inputs(Scale(network, batch, height, width, dtype))


def fill(network: nn.Module) -> None:
    """Weights that keep a signal's size from layer to layer: no overflow in fp16, no denormals."""
    for parameter in network.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=float(parameter[0].numel()) ** -0.5)


@torch.inference_mode()
def count_tflop(name: str, size: tuple[int, int], device: str = "meta") -> float:
    """Work of one frame, two operations for a multiply-add; without computing anything, unless a device is given."""
    network, inputs = build(name, size, 1, device, torch.float32)
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return float(counter.get_total_flops()) / SUBJECTS[name].frames / 1e12


def tflop_of(name: str, size: tuple[int, int]) -> float | None:
    """As `count_tflop`; None where what a network does depends on numbers."""
    try:
        return count_tflop(name, size)
    except Exception:  # the meta device raises anything where it has no numbers
        return None


@torch.inference_mode()
def half_error(name: str, size: tuple[int, int], device: str) -> float:
    """Largest difference between outputs in fp16 and in fp32, in parts of an output's largest value.

    Raises:
        ArithmeticError: an output is not finite in fp16; some random weights overflow it.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(allow_tf32=False):
            exact, close = (_outputs(name, size, device, dtype) for dtype in (torch.float32, torch.float16))
    finally:
        torch.set_float32_matmul_precision(before)
    if not all(bool(tensor.isfinite().all()) for tensor in close):
        raise ArithmeticError("values that are not finite")
    pairs = zip(exact, close, strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)


def _outputs(name: str, size: tuple[int, int], device: str, dtype: torch.dtype) -> list[Tensor]:
    network, inputs = build(name, size, 1, device, dtype)
    return [tensor.float() for tensor in _tensors(network(*inputs))]


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, tuple | list):
        for part in content:
            yield from _tensors(part)


def matmul_peak(device: str, dtype: torch.dtype, seconds: float) -> float:
    """TFLOP/s of a large matrix product: what this machine can do at most in this type."""
    n = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n**3 / median_seconds(lambda: a @ b, device, seconds) / 1e12


def median_seconds(step: Step, device: str, seconds: float) -> float:
    """Median time of a step over as many chunks as fit into the budget; the first step only warms up."""

    def timed(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    deadline = time.perf_counter() + seconds
    timed(1)
    once = timed(1)
    if time.perf_counter() > deadline:
        return once
    chunk = max(1, min(1000, round(CHUNK_SECONDS / once)))
    samples = [timed(chunk)]
    while time.perf_counter() < deadline:
        samples.append(timed(chunk))
    return statistics.median(samples)


def prepare(network: nn.Module, inputs: Inputs, mode: str) -> Step:
    """What one step calls in this mode, warmed up. Raises whatever the machine has against it."""
    if mode == "eager":
        return lambda: network(*inputs)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = tuple(
        x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.ndim == 4 else x for x in inputs
    )
    if mode == "channels_last":
        return lambda: network(*inputs)
    if mode == "compiled":
        compiled = torch.compile(network, dynamic=False)
        compiled(*inputs)
        return lambda: compiled(*inputs)
    # As CUDA asks for: some steps on a side stream first, so that nothing is set up while the graph is recorded.
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            network(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = network(*inputs)

    def replay() -> object:
        graph.replay()
        return outputs

    return replay


@torch.inference_mode()
def measure(cell: Cell, peak: float, seconds: float) -> Row:
    """One row. What fails on this machine is said in its note; the other rows go on.

    Args:
        peak: TFLOP/s of `matmul_peak`.
        seconds: how long to measure; a cell that cannot take one step in it even at the peak is skipped.
    """
    subject, on_cuda = SUBJECTS[cell.network], cell.device == "cuda"
    size = subject.own if cell.size == OWN else parse_size(cell.size)
    frames = cell.batch * subject.frames
    with torch.device("meta"):
        millions = sum(parameter.numel() for parameter in subject.build().parameters()) / 1e6
    tflop = tflop_of(cell.network, size)
    row = Row(cell.network, f"{size[0]}x{size[1]}" if cell.size == OWN else cell.size, cell.mode, millions, tflop)
    if cell.mode == "cuda_graph" and not on_cuda:
        return replace(row, note="needs a CUDA device")
    at_least = frames * (tflop or 0.0) / peak
    if at_least > seconds:
        return replace(row, note=f"skipped: at least {at_least:.1f} s a step; raise --seconds")
    forget(cell.device)
    try:
        with peak_mib(cell.device) as used:
            network, inputs = build(cell.network, size, cell.batch, cell.device, cell.dtype)
            if on_cuda:
                torch.cuda.reset_peak_memory_stats()  # states of the frame before came from a pass of their own
            frame = median_seconds(prepare(network, inputs, cell.mode), cell.device, seconds) / frames
        if tflop is None:
            tflop = count_tflop(cell.network, size, cell.device)
    except Exception as error:  # compilers and drivers raise anything; the row names it
        return replace(row, note=f"failed: {_first_line(error)}")
    mib = used[0] if used else None
    return replace(row, tflop=tflop, fps=1 / frame, ms=1000 * frame, share=tflop / frame / peak, peak_mib=mib)


def with_half_error(row: Row, cell: Cell) -> Row:
    """The row with what fp16 changes, or with why that is not known."""
    size = SUBJECTS[cell.network].own if cell.size == OWN else parse_size(cell.size)
    forget(cell.device)
    try:
        return replace(row, half_error=half_error(cell.network, size, cell.device))
    except Exception as error:  # as above
        return replace(row, note=f"{row.note} fp16 failed: {_first_line(error)}".strip())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


@contextmanager
def peak_mib(device: str) -> Iterator[list[float]]:
    """Fills its list at the end with the most memory that was in use inside, where the system tells."""
    found: list[float] = []
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    before = None
    if device != "cuda":
        try:
            clear.write_text("5")  # Linux: the peak of resident memory begins anew
            before = _kib(status, "VmRSS")
        except OSError:
            pass
    yield found
    if device == "cuda":
        found.append(torch.cuda.max_memory_allocated() / 2**20)
    elif before is not None:
        found.append((_kib(status, "VmHWM") - before) / 1024)


def _kib(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


def forget(device: str) -> None:
    """Frees what the cell before left, so that each peak is its own."""
    torch.compiler.reset()
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc's alone
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def parse_size(text: str) -> tuple[int, int]:
    """`720p` or `WIDTHxHEIGHT`; ValueError otherwise."""
    if text in SIZES:
        return SIZES[text]
    width, height = (int(side) for side in text.split("x"))
    if width < 16 or height < 16 or width % 2 or height % 2:
        raise ValueError("sides must be even and at least 16")
    return width, height


def machine(device: str, dtype: str, peak: float) -> dict[str, str | int | float]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    facts: dict[str, str | int | float] = {
        "device": name,
        "dtype": dtype,
        "matmul_tflops": round(peak, 3),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        facts["total_mib"] = torch.cuda.get_device_properties(0).total_memory // 2**20
    return facts


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""

    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    head = (
        f"{'network':<27}{'size':<11}{'mode':<15}{'M':>8}{'GFLOP':>10}{'fps':>9}{'ms':>10}{'of peak':>9}{'MiB':>8}"
        f"{'fp16':>9}"
    )
    lines = [
        f"{row.network:<27}{row.size:<11}{row.mode:<15}{row.parameters:>8.2f}"
        f"{cell(None if row.tflop is None else 1000 * row.tflop, '.2f'):>10}{cell(row.fps, '.2f'):>9}"
        f"{cell(row.ms, '.2f'):>10}{cell(row.share, '.1%'):>9}{cell(row.peak_mib, '.0f'):>8}"
        f"{cell(row.half_error, '.1e'):>9}  {row.note}".rstrip()
        for row in rows
    ]
    return "\n".join([head, *lines])


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with a message on nonsense."""
    cuda = torch.cuda.is_available()
    names = list(SUBJECTS)
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description=(__doc__ or "").splitlines()[0])
    models = ",".join((*UPSCALE, *MATTE))
    parser.add_argument("--networks", default=models, help=f"patterns, comma separated, of: {', '.join(names)}")
    parser.add_argument(
        "--sizes",
        default="480p,720p,1080p" if cuda else "192x128",
        help="480p, 720p, 1080p, WxH, or own: the size that a network is meant to work at",
    )
    parser.add_argument("--modes", default=",".join(MODES if cuda else MODES[:2]), help=f"of {', '.join(MODES)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="fp16 on CUDA, fp32 on a CPU unless given")
    parser.add_argument("--batch", type=int, default=1, help="frames a step")
    parser.add_argument("--seconds", type=float, default=5.0, help="time a cell may measure for")
    parser.add_argument("--half", action="store_true", help="also what fp16 changes against fp32")
    parser.add_argument(_PLAIN, action="store_true", help="without what a pin's process is given (actors/cpu.py)")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    args = parser.parse_args(argv)
    args.dtype = args.dtype or ("fp16" if args.device == "cuda" else "fp32")
    args.networks = [n for n in names if any(fnmatch.fnmatch(n, p) for p in args.networks.split(","))]
    args.sizes, args.modes = args.sizes.split(","), args.modes.split(",")
    if not args.networks:
        parser.error(f"--networks matches none of {', '.join(names)}")
    if unknown := [mode for mode in args.modes if mode not in MODES]:
        parser.error(f"--modes: {', '.join(unknown)} is none of {', '.join(MODES)}")
    for size in args.sizes:
        try:
            if size != OWN:
                parse_size(size)
        except ValueError as error:
            parser.error(f"--sizes: {size} is none of {', '.join(SIZES)}, {OWN} and no WIDTHxHEIGHT ({error})")
    if args.batch < 1 or args.seconds <= 0:
        parser.error("--batch and --seconds must be positive")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    # Convolutions in fp32 use TF32 on CUDA unless told otherwise: let the peak that they are compared with do so too.
    torch.set_float32_matmul_precision("high")
    dtype = DTYPES[args.dtype]
    peak = matmul_peak(args.device, dtype, min(args.seconds, 2.0))
    facts = machine(args.device, args.dtype, peak)
    rows = []
    for name in args.networks:
        for size in args.sizes:
            for mode in args.modes:
                print(f"{name} {size} {mode}", file=sys.stderr, flush=True)
                cell = Cell(name, size, mode, args.batch, args.device, dtype)
                row = measure(cell, peak, args.seconds)
                rows.append(with_half_error(row, cell) if args.half else row)
    if args.json:
        print(json.dumps({"machine": facts, "batch": args.batch, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print(", ".join(f"{key} {value}" for key, value in facts.items()))
        print(table(rows))


if __name__ == "__main__":
    if _PLAIN not in sys.argv:
        run_as_pin("bench.networks")
    main()
