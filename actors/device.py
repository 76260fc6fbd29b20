"""Frames on a model's device: models of one pin pass them on without a way back over the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.frames import Carry, FrameBatch, UInt8


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """A `FrameBatch` whose pixels are tensors.

    Attributes:
        rgb: uint8 [T,H,W,3].
        alpha: uint8 [T,H,W] or None.
        pts, cut, planes: as there.
    """

    rgb: Tensor
    pts: NDArray[np.int64]
    cut: NDArray[np.bool_]
    alpha: Tensor | None = None
    planes: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int(self.rgb.shape[2]), int(self.rgb.shape[1])

    def with_pixels(self, rgb: Tensor, alpha: Tensor | None = None) -> DeviceBatch:
        """The same frames in time with other pixels."""
        return replace(self, rgb=rgb, alpha=alpha)


class DeviceModel(ABC):
    """Base of the models that compute with torch: a `Model` whose frames may lie on its device already.

    Attributes:
        device: where.
    """

    device: torch.device

    @abstractmethod
    def on_device(self, batch: DeviceBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[DeviceBatch, Carry]:
        """The model, from and to its device; `batch` is left as it is."""

    def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:
        """The model, from and to the host."""
        made, after = self.on_device(upload(batch, self.device), carry, params)
        return download(made), after


def upload(batch: FrameBatch, device: torch.device) -> DeviceBatch:
    """Copies frames to a device."""
    alpha = None if batch.alpha is None else _to_device(batch.alpha, device)
    return DeviceBatch(_to_device(batch.rgb, device), batch.pts, batch.cut, alpha, batch.planes)


def download(batch: DeviceBatch) -> FrameBatch:
    """Copies frames to the host; those on a CPU are views."""
    alpha = None if batch.alpha is None else batch.alpha.cpu().numpy()
    return FrameBatch(batch.rgb.cpu().numpy(), batch.pts, batch.cut, alpha, batch.planes)


def _to_device(frames: UInt8, device: torch.device) -> Tensor:
    # The input may be a read-only view of shared memory, which torch cannot wrap; page-locked memory is also what a GPU
    # can fetch by itself.
    staging = torch.empty(frames.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.copyto(staging.numpy(), frames)
    return staging.to(device, non_blocking=True)
