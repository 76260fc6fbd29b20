"""What a model would take of a GPU, found without one: its own code runs on torch's `meta` device, which only keeps
shapes.

The rule: every tensor on the device counts from the moment it is made until nothing refers to it any more, rounded up
to 512 bytes as CUDA's allocator does. What lives after loading is `resident_mib`. The most that lives at once during a
call, and once more the largest result of a convolution (cuDNN may rearrange it in a workspace of that size), is
`peak_mib`. Contexts, kernels and the allocator's gaps are not in it: the budget adds the first two, and its margin is
for the third.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from actors.model import Card, Dtype, Setup
from actors.profiling import clip, job_params
from cluster.profiles import Figure

_BLOCK = 512
_MIB = 2**20


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors on `meta` while it is entered, and lets results be copied to the CPU as zeros.

    Attributes:
        now: bytes that live.
        peak: the most that lived at once.
        largest_convolution: bytes of the largest result of a convolution.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.largest_convolution = 0
        self._sizes: dict[int, int] = {}

    def reset_peak(self) -> None:
        """Begins a new peak at what lives now."""
        self.peak, self.largest_convolution = self.now, 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.name()
        if name.startswith("aten::to."):
            with self:  # in inference mode it arrives whole; what it is made of is handled below
                return func.decompose(*args, **kwargs)
        if name == "aten::_to_copy" and _leaves(args[0], kwargs.get("device")):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name == "aten::copy_" and _leaves(args[1], args[0].device):
            return args[0]
        result = func(*args, **kwargs)
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self._count(tensor)
                if name.startswith("aten::conv"):
                    self.largest_convolution = max(self.largest_convolution, tensor.nbytes)
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = -(-storage.nbytes() // _BLOCK) * _BLOCK
            self.now += self._sizes[key]
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _leaves(source: Tensor, device: Any) -> bool:
    return source.device.type == "meta" and device is not None and torch.device(device).type != "meta"


def estimate(
    card: Card, weights: Sequence[Path], size: tuple[int, int], *, dtype: Dtype, micro_batch: int, tile: int
) -> Figure:
    """What the rule says of a model.

    Args:
        card: of the model.
        weights: its checkpoints.
        size: width and height of the frames.
        dtype, micro_batch, tile: as in `Setup`.

    Raises:
        WeightsError: a checkpoint is not what it should be.
    """
    live = LiveBytes()
    with live:
        model = card.load(Setup(tuple(weights), "meta", dtype, micro_batch, tile))
        resident = live.now
        live.reset_peak()
        model(clip(size, micro_batch), {}, job_params(card, size))
    return Figure(
        model=card.name,
        dtype=dtype,
        width=size[0],
        height=size[1],
        micro_batch=micro_batch,
        tile=tile,
        resident_mib=round(resident / _MIB, 1),
        peak_mib=round((live.peak + live.largest_convolution) / _MIB, 1),
    )
