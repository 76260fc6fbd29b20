"""What all trackers do with masks: which objects they show, padding, and probabilities that exclude each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Mask:
    """Where objects are in one frame, as the caller says.

    Attributes:
        objects: the caller's own numbers of the objects shown, each once; an object may be shown in no pixel.
        planes: [len(objects),H,W], 0..1, in the order of `objects`.
    """

    objects: tuple[int, ...]
    planes: Tensor

    def __post_init__(self) -> None:
        if not self.objects or len(set(self.objects)) != len(self.objects):
            raise ValueError(f"a mask shows one or more objects, each once, not {self.objects}")
        if self.planes.ndim != 3 or len(self.planes) != len(self.objects):
            shape = list(self.planes.shape)
            raise ValueError(f"{len(self.objects)} objects need planes [{len(self.objects)},H,W], not {shape}")

    @property
    def covered(self) -> Tensor:
        """bool [H,W]: where the mask says something, so that no other object can be there."""
        return self.planes.sum(0) > 0.5

    def padded(self, padding: Padding, image: Tensor) -> Mask:
        """Grown by zeros, as float32, on the device of the padded image [...,H,W].

        Raises:
            ValueError: it is not of the image's size.
        """
        planes = F.pad(self.planes.to(image.device, torch.float32), padding)
        if planes.shape[-2:] != image.shape[-2:]:
            (height, width), size = self.planes.shape[-2:], list(cropped(image, padding).shape[-2:])
            raise ValueError(f"the mask is {height}x{width}, its frame {size[0]}x{size[1]}")
        return Mask(self.objects, planes)


def from_labels(labels: Tensor, objects: tuple[int, ...]) -> Mask:
    """The mask of a label map: [H,W] of integers, an object's number where it is."""
    return Mask(objects, torch.stack([labels == number for number in objects]).float())


#: Pixels to add at the left, right, top and bottom, as `F.pad` takes them.
Padding = tuple[int, int, int, int]


def padding_to(height: int, width: int, multiple: int) -> Padding:
    """Padding on both sides to multiples; the odd pixel is added at the right and the bottom."""
    more_y, more_x = -height % multiple, -width % multiple
    return more_x // 2, more_x - more_x // 2, more_y // 2, more_y - more_y // 2


def cropped(x: Tensor, padding: Padding) -> Tensor:
    """[...,H,W] without its padding."""
    left, right, top, bottom = padding
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def check_size(remembered: Tensor, features: Tensor) -> None:
    """Raises ValueError where a memory [...,h,w] is not of frames of this size."""
    if remembered.shape[-2:] != features.shape[-2:]:
        (h, w), (height, width) = remembered.shape[-2:], features.shape[-2:]
        raise ValueError(
            f"this memory is of frames of {h}x{w} places of 16 pixels, the frame has {height}x{width}: "
            "start anew where the size changes"
        )


def all_objects(known: tuple[int, ...], mask: Mask | None) -> tuple[int, ...]:
    """The objects after a mask: the known ones in their order, then its new ones in theirs."""
    return known if mask is None else known + tuple(number for number in mask.objects if number not in known)


def merged(predicted: Tensor | None, known: tuple[int, ...], mask: Mask) -> Tensor:
    """The objects' planes [n,H,W] after a mask, in the order of `all_objects`.

    An object of the mask is where the mask has it; any other where it was predicted and the mask shows nothing.

    Args:
        predicted: [1+len(known),H,W], background first; may be None where the mask shows all objects.
    """
    given = dict(zip(mask.objects, mask.planes, strict=True))
    others = {}
    if predicted is not None:
        others = dict(zip(known, predicted[1:].masked_fill(mask.covered, 0), strict=True))
    return torch.stack([given[number] if number in given else others[number] for number in all_objects(known, mask)])


def soft_aggregation(prob: Tensor, dim: int = 0) -> Tensor:
    """Logits with the background's first from the objects' independent probabilities (STM, arXiv:1904.00607, 3.4).

    In float32 always: 1 - 1e-7 has no half.
    """
    prob = prob.float()
    prob = torch.cat([(1 - prob).prod(dim, keepdim=True), prob], dim).clamp(1e-7, 1 - 1e-7)
    return torch.log(prob / (1 - prob))


def sine_positions(places: int, frequencies: Tensor, scale: float) -> Tensor:
    """Sine and cosine of each frequency in turn, [places, 2 * frequencies]; the places are spread over 0..scale."""
    position = torch.arange(places, device=frequencies.device, dtype=frequencies.dtype)
    angle = (position / (places - 1 + 1e-6) * scale)[:, None] * frequencies
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
