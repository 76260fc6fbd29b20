"""The DeAOT network and its walk through a video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.networks.resnet import Bottleneck, FrozenBatchNorm2d, Trunk
from actors.networks.tracking.deaot.encoder import MobileNetV2
from actors.networks.tracking.deaot.propagation import LayerMemory, Propagation
from actors.networks.tracking.masks import Mask, all_objects, check_size, merged
from actors.networks.tracking.value import Value

Encoder = Literal["mobilenetv2", "resnet50"]
_STRIDE = 16
#: Of channels, in the decoder's norms.
_GROUPS = 8


@dataclass(frozen=True, slots=True)
class DeAOTLimits:
    """When frames are stored and how many are kept. A frame costs 4608 bytes a place of 16 pixels and a layer.

    Attributes:
        every: frames from one stored frame to the next. The authors take 5 for L and R50-L; T, S and B store the
            masks' frames only (9999).
        max_frames: long-term frames, at most. Beyond it the oldest one that came without a mask is dropped, then the
            oldest one with a mask but the first, which always stays.
    """

    every: int = 5
    max_frames: int = 8

    def __post_init__(self) -> None:
        if min(self.every, self.max_frames) < 1:
            raise ValueError(f"every and max_frames are at least 1: {self}")


LIMITS = DeAOTLimits()


@dataclass(frozen=True, slots=True)
class DeAOTMemory(Value):
    """What DeAOT knows after a frame.

    Attributes:
        time: number of that frame, counted from the first mask's.
        stored: number of the last frame in `long`.
        objects: the caller's numbers, in the order of the probabilities' channels.
        given: for each frame of `long`, newest first, 1 if it came with a mask.
        long: for each layer the long-term frames, newest first.
        last: for each layer the last frame.
    """

    time: int
    stored: int
    objects: tuple[int, ...]
    given: tuple[int, ...]
    long: tuple[LayerMemory, ...]
    last: tuple[LayerMemory, ...]


class ConvNorm(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.gn = nn.GroupNorm(_GROUPS, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.gn(self.conv(x)))


class Decoder(nn.Module):
    """Both branches [1,2C,h,w] and the image's features at 1/4, 1/8, 1/16 to logits at 1/4, background first."""

    def __init__(self, image: tuple[int, int, int], channels: int, out: int) -> None:
        super().__init__()
        c4, c8, c16 = image
        half = channels // 2
        self.conv_in = ConvNorm(2 * channels, channels, 1)
        self.conv_16x = ConvNorm(channels, channels, 3)
        self.conv_8x = ConvNorm(channels, half, 3)
        self.conv_4x = ConvNorm(half, half, 3)
        self.adapter_16x = nn.Conv2d(c16, channels, 1)
        self.adapter_8x = nn.Conv2d(c8, channels, 1)
        self.adapter_4x = nn.Conv2d(c4, half, 1)
        self.conv_out = nn.Conv2d(half, out, 1)

    def forward(self, x: Tensor, features: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        f4, f8, f16 = features
        x = self.conv_16x(self.adapter_16x(f16) + self.conv_in(x))
        x = self.conv_8x(self.adapter_8x(f8) + _resized(x, f8))
        x = self.conv_4x(self.adapter_4x(f4) + _resized(x, f4))
        y: Tensor = self.conv_out(x)
        return y


class DeAOT(nn.Module):
    """The network and, in `step`, its walk through a video.

    Frames are RGB in 0..1 less ImageNet's mean, by its deviation. The authors let the longer side be 1040 at most.

    Args:
        layers: of propagation: 1 in T, 2 in S, 3 in B, L and R50-L; B and L differ only in `DeAOTLimits.every`.

    Attributes:
        multiple_of: sides are one more than multiples of it: corners stay aligned at all strides.
        max_objects: how many it can tell apart.
        half_safe: the authors offer mixed precision; logits are made full size in float32. The labels found are fed
            back, so that small differences can grow where nothing is clear.
    """

    multiple_of = _STRIDE
    half_safe = True

    def __init__(
        self, encoder: Encoder = "mobilenetv2", layers: int = 1, channels: int = 256, max_objects: int = 10
    ) -> None:
        super().__init__()
        self.max_objects = max_objects
        self.encoder: MobileNetV2 | Trunk
        if encoder == "mobilenetv2":
            self.encoder = MobileNetV2()
            *image, top = self.encoder.channels
        else:
            self.encoder = Trunk(Bottleneck, (3, 4, 6), norm=FrozenBatchNorm2d)
            *image, top = *self.encoder.channels, self.encoder.channels[-1]
        c4, c8, c16 = image
        self.encoder_projector = nn.Conv2d(top, channels, 1)
        self.LSTT = Propagation(channels, layers)
        self.decoder = Decoder((c4, c8, c16), channels, max_objects + 1)
        self.patch_wise_id_bank = nn.Conv2d(max_objects + 1, channels, 17, _STRIDE, 8)
        self.id_norm = nn.LayerNorm(channels)

    def encode(self, frames: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Frames [B,3,H,W] to features at 1/4, 1/8, 1/16, and what is propagated, [B,C,h,w] at 1/16."""
        f4, f8, f16, *deeper = self.encoder(frames)
        return (f4, f8, f16), self.encoder_projector(deeper[0] if deeper else f16)

    def identify(self, prob: Tensor) -> Tensor:
        """Which object is where, [h,w,C], from probabilities [1+n,H,W]: the likeliest one alone counts."""
        channels = torch.arange(self.max_objects + 1, device=prob.device)[:, None, None]
        present = (prob.argmax(0) == channels).to(self.patch_wise_id_bank.weight.dtype)
        embedding = self.patch_wise_id_bank(present[None])
        y: Tensor = self.id_norm(embedding[0].permute(1, 2, 0))
        return y

    def step(
        self, frame: Tensor, mask: Mask | None, memory: DeAOTMemory | None, limits: DeAOTLimits = LIMITS
    ) -> tuple[Tensor, DeAOTMemory]:
        """Segments the next frame.

        Args:
            frame: [3,H,W], of one size throughout a video.
            mask: of the first frame, and of any later one that shows new objects or corrects known ones.
            memory: what the step before returned; None at the start of a video and after a cut. Never changed.

        Returns:
            Probabilities float32 [1+n,H,W] of the background and `memory.objects`, and the memory after this frame.

        Raises:
            ValueError: the first frame has no mask, there are too many objects, sides are not one more than multiples
                of 16, or the mask or the memory is of another size.
        """
        _check_sides(frame)
        features, top = self.encode(frame[None])
        memory = _started(memory, mask, top)
        objects, time = all_objects(memory.objects, mask), memory.time + 1
        if len(objects) > self.max_objects:
            raise ValueError(f"{len(objects)} objects, of which this network can tell {self.max_objects} apart")
        x = top[0].permute(1, 2, 0)

        prob: Tensor | None = None
        looks = []
        if memory.objects and (mask is None or set(mask.objects) != set(objects)):
            propagated, looks = self.LSTT(x, memory.long, memory.last)
            logits = self.decoder(propagated, features)[:, : 1 + len(memory.objects)]
            prob = _resized(logits.float(), frame)[0].softmax(0)
        if mask is not None:
            planes = merged(prob, memory.objects, mask.padded((0, 0, 0, 0), frame))
            planes = planes / planes.sum(0).clamp(min=1)
            prob = torch.cat([(1 - planes.sum(0, keepdim=True)).clamp(min=0), planes])
            last = self.LSTT.referred(x, self.identify(prob))
        else:
            assert prob is not None  # there are objects, and no mask that would show them all
            last = self.LSTT.remembered(looks, self.identify(prob))
        given, long = memory.given, memory.long
        store = mask is not None or time - memory.stored >= limits.every
        if store:
            given = (int(mask is not None), *given)
            long = tuple(new.after(old) for new, old in zip(last, long, strict=True)) if long else last
            kept = _kept(given, limits.max_frames)
            given, long = tuple(given[index] for index in kept), tuple(layer.picked(kept) for layer in long)
        return prob, DeAOTMemory(time, time if store else memory.stored, objects, given, long, last)


def _started(memory: DeAOTMemory | None, mask: Mask | None, top: Tensor) -> DeAOTMemory:
    if memory is None:
        if mask is None:
            raise ValueError("the first frame of a video needs a mask")
        return DeAOTMemory(-1, 0, (), (), (), ())
    check_size(memory.last[0].key.movedim(-1, 0), top)
    return memory


def _kept(given: tuple[int, ...], most: int) -> list[int]:
    """Which of the long-term frames, newest first, stay."""
    kept = list(range(len(given)))
    while len(kept) > most:
        oldest = [index for index in kept[:-1] if not given[index]] or kept[:-1]
        kept.remove(oldest[-1])
    return kept


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


def _check_sides(frame: Tensor) -> None:
    height, width = frame.shape[-2:]
    if height % _STRIDE != 1 or width % _STRIDE != 1:
        raise ValueError(f"sides must be one more than multiples of {_STRIDE}, got {height}x{width}")


def detect(state: Mapping[str, Tensor]) -> DeAOT | None:
    """The network (weights not loaded) whose sizes this state dict has, or None if it is of another family."""
    projector, bank = state.get("encoder_projector.weight"), state.get("patch_wise_id_bank.weight")
    layers = 0
    while f"LSTT.layers.{layers}.linear_QV.weight" in state:
        layers += 1
    if projector is None or bank is None or not layers:
        return None
    if projector.ndim != 4 or bank.ndim != 4 or len(projector) % (2 * _GROUPS):
        return None
    if "encoder.features.0.0.weight" in state:
        encoder: Encoder = "mobilenetv2"
    elif "encoder.layer1.0.conv1.weight" in state:
        encoder = "resnet50"
    else:
        return None
    return DeAOT(encoder, layers, len(projector), bank.shape[1] - 1)
