"""What a model is: a Ray-free callable on frames, described by a card in its family's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from actors.frames import Carry, FrameBatch

Dtype = Literal["fp32", "fp16", "bf16"]


class Model(Protocol):
    """`(batch, carry, params) -> (batch, carry)`.

    `params` are the choices of one job that need no reloading (an output size, a downsample ratio); they are plain
    JSON values. Any chunking of a clip into batches gives the same frames to the last bit in fp32 on a CPU, because
    `carry` holds all state; state resets before each frame whose `cut` is True. Input arrays are read-only views of
    shared memory: a model never writes into them.
    """

    def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]: ...


@dataclass(frozen=True, slots=True)
class Setup:
    """Where and how a model is loaded.

    Attributes:
        weights: checkpoint files, in the order of the card's `weights`.
        device: a torch device string, `cpu` or `cuda`.
        dtype: arithmetic of the network; fp32 on a CPU, fp16 on CUDA unless the configuration says otherwise.
        micro_batch: frames a network call takes at once; always 1 on a CPU, where larger ones gain nothing and
            would let the convolution library choose other algorithms for other chunkings.
        tile: largest input side in pixels before tiling, 0 for never.
        options: what selects the resident weights beside the name (e.g. `{"denoise": 0.5}`), as in `Step.load`.
    """

    weights: tuple[Path, ...]
    device: str = "cpu"
    dtype: Dtype = "fp32"
    micro_batch: int = 1
    tile: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Card:
    """A model as the catalogue knows it.

    Attributes:
        name: what the user types.
        family: the pin that hosts it by default, `upscale` or `matte`.
        weights: names in the weights registry that it needs.
        resident: True when it runs in a pin; False when it is light enough to run inside the lane.
        load: makes the model; raises `WeightsError` when a checkpoint is not what it should be.
        stateful: True when a batch's result depends on the batches before it, through the carry.
        scale: the network's fixed enlargement, 1 where it has none.
        work: TFLOP (two per multiply-add) for a megapixel of input, 0 where it does not matter beside the codecs.
        summary: one line for listings.
    """

    name: str
    family: str
    weights: tuple[str, ...]
    resident: bool
    load: Callable[[Setup], Model]
    stateful: bool = False
    scale: int = 1
    work: float = 0.0
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One link of a chain: which model, which resident variant of it, and this job's parameters (JSON values)."""

    model: str
    load: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Name of the resident that it needs: the model's, and what selects its weights beside that."""
        return f"{self.model} {sorted(self.load.items())}" if self.load else self.model
