"""How fast the bare networks are on this machine: frames per second, memory, share of the measured matmul peak.

    python -m bench.networks                                   every network, 480p, 720p, 1080p, every mode (on a GPU)
    python -m bench.networks --networks 'rvm-*' --sizes 1080p,576x1024 --modes channels_last,cuda_graph --json

Needs torch and numpy alone. Weights are random: speed does not depend on them. A frame is in memory, as the network
wants it, before the clock starts; decoding, colour, copies and resizing are not in these figures.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from actors.networks.rrdb import RRDBNet
from actors.networks.rvm import MattingNetwork
from actors.networks.srvgg import SRVGGNetCompact
from bench.environment import run_as_pin

UPSCALE: Mapping[str, Callable[[], nn.Module]] = {
    "realesr-animevideov3": lambda: SRVGGNetCompact(convs=16, scale=4),
    "realesr-general-x4v3": lambda: SRVGGNetCompact(convs=32, scale=4),
    "realesrgan-x4plus-anime-6b": lambda: RRDBNet(blocks=6, scale=4),
    "realesrgan-x2plus": lambda: RRDBNet(blocks=23, scale=2),
    "realesrgan-x4plus": lambda: RRDBNet(blocks=23, scale=4),
}
MATTE: Mapping[str, Callable[[], MattingNetwork]] = {
    "rvm-mobilenetv3": lambda: MattingNetwork("mobilenetv3"),
    "rvm-resnet50": lambda: MattingNetwork("resnet50"),
}
SIZES = {"480p": (640, 480), "720p": (1280, 720), "1080p": (1920, 1080)}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#: `compiled` and `cuda_graph` are each on top of channels_last.
MODES = ("eager", "channels_last", "compiled", "cuda_graph")
#: The matting networks look at the frame at this long side, as the matte family does unless told otherwise.
MATTE_LONG_SIDE = 768
#: Steps are timed in chunks of about this many seconds, so that launching work ahead of the GPU counts as it does in
#: a running job.
CHUNK_SECONDS = 0.1
_PLAIN = "--plain"

Inputs = tuple[Tensor, ...]
Step = Callable[[], object]


class MatteStep(nn.Module):
    """A matting network as a function of tensors: the frame and the four states of the frame before."""

    def __init__(self, network: MattingNetwork, ratio: float) -> None:
        super().__init__()
        self.network = network
        self.ratio = ratio

    def forward(self, src: Tensor, r1: Tensor, r2: Tensor, r3: Tensor, r4: Tensor) -> tuple[Tensor, ...]:
        fgr, pha, states = self.network(src, (r1, r2, r3, r4), self.ratio)
        return fgr, pha, *states


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
    """What was measured. Figures are None where `note` says why there are none."""

    network: str
    size: str
    mode: str
    tflop: float
    fps: float | None = None
    ms: float | None = None
    share: float | None = None
    peak_mib: float | None = None
    note: str = ""


def build(name: str, size: tuple[int, int], batch: int, device: str, dtype: torch.dtype) -> tuple[nn.Module, Inputs]:
    """A network with random weights and the inputs of one step."""
    width, height = size
    with torch.device(device):
        x = torch.rand(batch, 3, height, width).to(dtype)
        if name in UPSCALE:
            network = UPSCALE[name]()
            fill(network)
            return network.eval().to(dtype), (x,)
        matting = MATTE[name]().eval()
        fill(matting)
        matting.to(dtype)
        ratio = min(1.0, MATTE_LONG_SIDE / max(size))
        _, _, states = matting(x, None, ratio)
        return MatteStep(matting, ratio), (x, *states)


def fill(network: nn.Module) -> None:
    """Weights that keep a signal's size from layer to layer: no overflow in fp16, no denormals."""
    for parameter in network.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=float(parameter[0].numel()) ** -0.5)


@torch.inference_mode()
def count_tflop(name: str, size: tuple[int, int]) -> float:
    """Work of one frame, two operations for a multiply-add, without computing anything."""
    network, inputs = build(name, size, 1, "meta", torch.float32)
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return float(counter.get_total_flops()) / 1e12


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
    chunk = max(1, min(1000, round(CHUNK_SECONDS / timed(1))))
    samples = [timed(chunk)]
    while time.perf_counter() < deadline:
        samples.append(timed(chunk))
    return statistics.median(samples)


def prepare(network: nn.Module, inputs: Inputs, mode: str) -> Step:
    """What one step calls in this mode, warmed up. Raises whatever the machine has against it."""
    if mode == "eager":
        return lambda: network(*inputs)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = tuple(x.contiguous(memory_format=torch.channels_last) for x in inputs)
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
    size, on_cuda = parse_size(cell.size), cell.device == "cuda"
    tflop = count_tflop(cell.network, size)
    row = Row(cell.network, cell.size, cell.mode, tflop)
    if cell.mode == "cuda_graph" and not on_cuda:
        return replace(row, note="needs a CUDA device")
    at_least = cell.batch * tflop / peak
    if at_least > seconds:
        return replace(row, note=f"skipped: at least {at_least:.1f} s a step; raise --seconds")
    forget(cell.device)
    try:
        network, inputs = build(cell.network, size, cell.batch, cell.device, cell.dtype)
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()  # the matting networks' states came from a pass of their own
        frame = median_seconds(prepare(network, inputs, cell.mode), cell.device, seconds) / cell.batch
    except Exception as error:  # compilers and drivers raise anything; the row names it
        lines = str(error).strip().splitlines() or [""]
        return replace(row, note=f"failed: {type(error).__name__}: {lines[0][:160]}")
    mib = torch.cuda.max_memory_allocated() / 2**20 if on_cuda else None
    return replace(row, fps=1 / frame, ms=1000 * frame, share=tflop / frame / peak, peak_mib=mib)


def forget(device: str) -> None:
    """Frees what the cell before left, so that each peak is its own."""
    torch.compiler.reset()
    gc.collect()
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

    head = f"{'network':<27}{'size':<11}{'mode':<15}{'GFLOP':>10}{'fps':>9}{'ms':>10}{'of peak':>9}{'MiB':>8}"
    lines = [
        f"{row.network:<27}{row.size:<11}{row.mode:<15}{1000 * row.tflop:>10.2f}{cell(row.fps, '.2f'):>9}"
        f"{cell(row.ms, '.2f'):>10}{cell(row.share, '.1%'):>9}{cell(row.peak_mib, '.0f'):>8}  {row.note}".rstrip()
        for row in rows
    ]
    return "\n".join([head, *lines])


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with a message on nonsense."""
    cuda = torch.cuda.is_available()
    names = [*UPSCALE, *MATTE]
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default="*", help=f"patterns, comma separated, of: {', '.join(names)}")
    parser.add_argument("--sizes", default="480p,720p,1080p" if cuda else "192x128", help="480p, 720p, 1080p or WxH")
    parser.add_argument("--modes", default=",".join(MODES if cuda else MODES[:2]), help=f"of {', '.join(MODES)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="fp16 on CUDA, fp32 on a CPU unless given")
    parser.add_argument("--batch", type=int, default=1, help="frames a step")
    parser.add_argument("--seconds", type=float, default=5.0, help="time a cell may measure for")
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
            parse_size(size)
        except ValueError as error:
            parser.error(f"--sizes: {size} is none of {', '.join(SIZES)} and no WIDTHxHEIGHT ({error})")
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
                rows.append(measure(cell, peak, args.seconds))
    if args.json:
        print(json.dumps({"machine": facts, "batch": args.batch, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print(", ".join(f"{key} {value}" for key, value in facts.items()))
        print(table(rows))


if __name__ == "__main__":
    if _PLAIN not in sys.argv:
        run_as_pin("bench.networks")
    main()
