"""Upscaler: frames through a Real-ESRGAN network and on to the size asked for, all on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from actors.device import DeviceBatch, DeviceModel
from actors.frames import Carry
from actors.model import Dtype, Setup
from actors.networks.load import DTYPES, Loaded, load_blend, load_network
from actors.networks.rrdb import RRDBNet
from actors.networks.srvgg import SRVGGNetCompact
from actors.upscale.sizes import reduced_size
from actors.upscale.tiles import run_tiled
from cluster.errors import UsageError, WeightsError

Network = SRVGGNetCompact | RRDBNet


#: Strength of general-x4v3's denoising when none is asked for, as in Real-ESRGAN's own tools.
DENOISE = 0.5


class Upscaler(DeviceModel):
    """A stateless `Model`: every frame is enlarged on its own.

    Parameters of a job: `size`, [width, height] of the result or None for the network's own enlargement; `max_input`,
    the longest short side in pixels that the network is given (larger frames are reduced first), or None.
    `batch.planes` are passed on as they are.

    On a CPU in fp32 the same frame gives the same bits in any batch and with any tile (compact networks).

    Attributes:
        micro_batch: frames the network takes at once; may be changed between calls.
        tile: longest side of a network input in pixels, its margins not counted; 0 for never tiling; may be changed
            between calls.
    """

    def __init__(
        self, network: Network, *, device: str = "cpu", dtype: Dtype = "fp32", micro_batch: int = 1, tile: int = 0
    ) -> None:
        self.device = torch.device(device)
        self.dtype = DTYPES[dtype]
        # Channels last is the layout tensor cores want. It is also what makes tiles bit-exact on a CPU (AVX2 or later):
        # for the other layout oneDNN picks its algorithm, and with it the order of additions, by the size of the image.
        self.network: Network = network.to(device=self.device, dtype=self.dtype)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.micro_batch = 1 if self.device.type == "cpu" else micro_batch
        self.tile = tile

    @torch.inference_mode()
    def on_device(self, batch: DeviceBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[DeviceBatch, Carry]:
        """Enlarges a batch.

        Raises:
            UsageError: a parameter is unknown or not a size.
        """
        size, network_input = self._sizes(batch.size, params)
        width, height = size
        rgb = torch.empty((len(batch), height, width, 3), dtype=torch.uint8, device=self.device)
        for start in range(0, len(batch), self.micro_batch):
            part = slice(start, start + self.micro_batch)
            x = batch.rgb[part].permute(0, 3, 1, 2).to(self.dtype).div_(255)
            y = resize(self._enlarge(resize(x, network_input)), size)
            rgb[part] = to_uint8(y).permute(0, 2, 3, 1)
        return batch.with_pixels(rgb, self._resize_alpha(batch.alpha, size)), carry

    def _sizes(self, source: tuple[int, int], params: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size asked for, and the size of the network's input."""
        unknown = sorted(params.keys() - {"size", "max_input"})
        if unknown:
            raise UsageError("upscale", f"unknown parameters: {', '.join(unknown)}", remedy="known: size, max_input")
        limit = params.get("max_input")
        if limit is not None and not _is_side(limit):
            raise UsageError("upscale", f"max_input is {limit!r}", remedy="give pixels of the short side, or null")
        network_input = source if limit is None else reduced_size(source, limit)
        size = params.get("size")
        if size is None:
            return (network_input[0] * self.network.scale, network_input[1] * self.network.scale), network_input
        if not isinstance(size, list | tuple) or len(size) != 2 or not all(_is_side(side) for side in size):
            raise UsageError("upscale", f"size is {size!r}", remedy="give [width, height] in pixels, or null")
        return (size[0], size[1]), network_input

    def _enlarge(self, x: Tensor) -> Tensor:
        """[B,3,H,W] in 0..1 -> the network's output, in tiles if the frame is larger than one."""
        height, width = x.shape[2:]
        multiple, scale = self.network.multiple_of, self.network.scale
        x = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate") if multiple > 1 else x
        if self.tile and max(height, width) > self.tile:
            margin = self.network.receptive_field
            y = run_tiled(self.network, x, tile=self.tile, scale=scale, exact_margin=margin, multiple_of=multiple)
        else:
            y = self.network(x.contiguous(memory_format=torch.channels_last))
        return y[:, :, : height * scale, : width * scale]

    def _resize_alpha(self, alpha: Tensor | None, size: tuple[int, int]) -> Tensor | None:
        if alpha is None:
            return None
        out = torch.empty((len(alpha), size[1], size[0]), dtype=torch.uint8, device=self.device)
        for i in range(len(alpha)):
            x = alpha[i : i + 1].unsqueeze(1).to(torch.float32).div_(255)
            # Bilinear, not bicubic: an edge must not ring into the flat areas on both sides of it.
            out[i] = to_uint8(resize(x, size, mode="bilinear"))[0, 0]
        return out


def load_upscaler(setup: Setup, scale: int) -> Upscaler:
    """Loads a network with a single checkpoint.

    Args:
        scale: the enlargement that the network must have.

    Raises:
        WeightsError: the checkpoint is damaged, or of a network that does not enlarge, or by another factor.
        UsageError: options are given, and this model has none.
    """
    if setup.options:
        raise UsageError("upscale", f"unknown options: {', '.join(setup.options)}", remedy="this model has none")
    return _upscaler(load_network(setup.weights[0]), setup, scale)


def load_denoising_upscaler(setup: Setup, scale: int) -> Upscaler:
    """Loads general-x4v3 between its two checkpoints (strong, then weak); option `denoise` 0..1, 1 the strongest.

    Raises:
        WeightsError: as `load_upscaler`, or the two are not the same network.
        UsageError: `denoise` is not a number in 0..1, or other options are given.
    """
    unknown = sorted(setup.options.keys() - {"denoise"})
    if unknown:
        raise UsageError("upscale", f"unknown options: {', '.join(unknown)}", remedy="known: denoise")
    denoise = setup.options.get("denoise", DENOISE)
    if isinstance(denoise, bool) or not isinstance(denoise, int | float) or not 0 <= denoise <= 1:
        raise UsageError("upscale", f"denoise is {denoise!r}", remedy="give a number from 0 (keep noise) to 1 (strong)")
    strong, weak = setup.weights
    return _upscaler(load_blend(strong, weak, float(denoise)), setup, scale)


def _upscaler(loaded: Loaded, setup: Setup, scale: int) -> Upscaler:
    name = setup.weights[0].name
    if not isinstance(loaded.network, SRVGGNetCompact | RRDBNet):
        raise WeightsError(name, f"holds a network ({loaded.kind}) that does not enlarge")
    if loaded.scale != scale:
        raise WeightsError(name, f"enlarges by {loaded.scale}, not by {scale}: it is another model's checkpoint")
    return Upscaler(
        loaded.network, device=setup.device, dtype=setup.dtype, micro_batch=setup.micro_batch, tile=setup.tile
    )


def resize(x: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """[B,C,H,W] -> [B,C,height,width] for `size` = (width, height); bicubic (a = -0.5) unless told otherwise.

    When reducing, the filter widens with the ratio, so every input pixel counts (no aliasing). Every output pixel is
    its own weighted sum: the same on any machine's CPU in any batch. A bicubic result can exceed the input's range.
    """
    width, height = size
    if (height, width) == tuple(x.shape[2:]):
        return x
    # A CPU has this kernel in single precision only.
    y = F.interpolate(x.float() if x.device.type == "cpu" else x, size=(height, width), mode=mode, antialias=True)
    return y.to(x.dtype)


def to_uint8(y: Tensor) -> Tensor:
    """0..1 -> 0..255, clamped, rounded to the nearest, halves to even; `y` is used up."""
    return y.mul_(255).clamp_(0, 255).round_().to(torch.uint8)


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
