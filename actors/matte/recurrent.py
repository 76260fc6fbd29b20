"""Robust Video Matting as a model: its recurrent state is the carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.frames import Carry, FrameBatch, UInt8
from actors.model import Model, Setup
from actors.networks.load import DTYPES, load_network
from actors.networks.rvm import MattingNetwork, States
from actors.networks.rvm.matting import Variant
from cluster.errors import UsageError, WeightsError

#: Longest side at which the network looks unless told otherwise: what the authors advise for full bodies
#: (ratio 0.6 at 720p, 0.4 at 1080p, 0.2 at 4K).
LONG_SIDE = 768


class RecurrentMatte:
    """Foreground colours and alpha of people.

    Params:
        long_side: pixels of the frame's longer side that the network sees, at most; 768 where not given.
        downsample_ratio: the same as a factor, 0 < ratio <= 1; wins over `long_side`.

    Carry:
        r1..r4: float32 [1,C,h,w]; half-precision states convert to float32 and back without loss.
        geometry: float64 [3], width, height and ratio that the states belong to; with any other, state resets.
    """

    def __init__(self, network: MattingNetwork, device: str, dtype: torch.dtype, micro_batch: int) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        # One frame a call on a CPU: other batch sizes may take other convolution algorithms, and then other bits.
        self.micro_batch = 1 if self.device.type == "cpu" else max(micro_batch, 1)
        self.network = network.eval().requires_grad_(False).to(device=self.device, dtype=dtype)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs

    @torch.inference_mode()
    def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:
        width, height = batch.size
        ratio = _ratio(params, width, height)
        geometry = np.array([width, height, ratio])
        states = self._restore(carry, geometry)
        rgb, alpha = np.empty_like(batch.rgb), np.empty(batch.rgb.shape[:3], np.uint8)
        for part in _parts(batch.cut, self.micro_batch):
            if batch.cut[part.start]:
                states = None
            fgr, pha, states = self.network(self._to_src(batch.rgb[part]), states, ratio)
            rgb[part] = _to_uint8(fgr[0]).transpose(0, 2, 3, 1)
            alpha[part] = _to_uint8(pha[0, :, 0])
        return batch.with_pixels(rgb, alpha), _store(states, geometry)

    def _to_src(self, rgb: UInt8) -> torch.Tensor:
        """uint8 [T,H,W,3] to [1,T,3,H,W] in 0..1."""
        src = torch.from_numpy(rgb.copy()).to(self.device).permute(0, 3, 1, 2)
        return (src.to(self.dtype) / 255)[None]

    def _restore(self, carry: Carry, geometry: NDArray[np.float64]) -> States | None:
        if not carry or not np.array_equal(carry["geometry"], geometry):
            return None
        r1, r2, r3, r4 = (
            torch.from_numpy(carry[name].copy()).to(self.device, self.dtype, memory_format=torch.channels_last)
            for name in ("r1", "r2", "r3", "r4")
        )
        return r1, r2, r3, r4


def load_recurrent(setup: Setup, variant: Variant) -> Model:
    """Loads an RVM checkpoint.

    Raises:
        WeightsError: the file is not a checkpoint, or not this variant's.
    """
    (path,) = setup.weights
    network = load_network(path).network
    if not isinstance(network, MattingNetwork) or network.variant != variant:
        found = f"RVM {network.variant}" if isinstance(network, MattingNetwork) else type(network).__name__
        raise WeightsError(path.name, f"holds {found}, not RVM {variant}", remedy="import the file under its own name")
    return RecurrentMatte(network, setup.device, DTYPES[setup.dtype], setup.micro_batch)


def _ratio(params: Mapping[str, Any], width: int, height: int) -> float:
    explicit = params.get("downsample_ratio")
    if explicit is not None:
        if not 0 < float(explicit) <= 1:
            raise UsageError("downsample_ratio", f"{explicit} is not in 0..1", remedy="0.4 suits full bodies at 1080p")
        return float(explicit)
    long_side = float(params.get("long_side", LONG_SIDE))
    if not long_side >= 16:
        raise UsageError("long_side", f"{long_side:g} pixels are too few to see anybody", remedy="give 256 to 1536")
    return min(long_side / max(width, height), 1.0)


def _parts(cut: NDArray[np.bool_], most: int) -> Iterator[slice]:
    """Consecutive slices of at most `most` frames; a cut always starts one."""
    first = 0
    for index in range(1, len(cut) + 1):
        if index == len(cut) or cut[index] or index - first == most:
            yield slice(first, index)
            first = index


def _to_uint8(x: torch.Tensor) -> UInt8:
    levels: UInt8 = (x.float() * 255).round().to(torch.uint8).cpu().numpy()
    return levels


def _store(states: States | None, geometry: NDArray[np.float64]) -> Carry:
    if states is None:
        return {}
    arrays: dict[str, NDArray[np.generic]] = {"geometry": geometry}
    for name, state in zip(("r1", "r2", "r3", "r4"), states, strict=True):
        arrays[name] = state.float().contiguous().cpu().numpy()
    return arrays
