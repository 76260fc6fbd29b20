"""XMem: long-term video object segmentation (Cheng & Schwing, 2022, arXiv:2207.07115)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.networks.resnet import BasicBlock, Bottleneck, Trunk
from actors.networks.tracking.bank import Bank, Limits, Projected, store_frame
from actors.networks.tracking.masks import Mask, all_objects, check_size, cropped, merged, padding_to, soft_aggregation
from actors.networks.tracking.objects import MultiScaleGRU, ResBlock, SensoryGRU, grown, other_objects, upsampled
from actors.networks.tracking.value import Value

LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class XMemMemory(Value):
    """What XMem knows after a frame.

    Attributes:
        time: number of that frame, counted from the first mask's.
        stored: number of the last frame in the banks.
        objects: the caller's numbers, in the order of the probabilities' channels.
        sensory: [n,Ch,h,w] at 1/16, a recurrent state of each object (the paper's hidden state).
        banks: of objects that came together, in the order of `objects`.
    """

    time: int
    stored: int
    objects: tuple[int, ...]
    sensory: Tensor
    banks: tuple[Bank, ...]


class KeyProjection(nn.Module):
    """Features at 1/16 to key, shrinkage of 1 and more, and selection in 0..1."""

    def __init__(self, in_channels: int, key: int) -> None:
        super().__init__()
        self.key_proj = nn.Conv2d(in_channels, key, 3, padding=1)
        self.d_proj = nn.Conv2d(in_channels, 1, 3, padding=1)
        self.e_proj = nn.Conv2d(in_channels, key, 3, padding=1)

    def forward(self, x: Tensor) -> Projected:
        # The square of a half overflows beyond 256.
        return Projected(self.key_proj(x), self.d_proj(x).float().square() + 1, self.e_proj(x).sigmoid())


class ChannelGate(nn.Module):
    """Scales channels by what their means and maxima say."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = channels // reduction
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels))

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        return x * gate.sigmoid()[:, :, None, None]


class SpatialGate(nn.Module):
    """Scales places by what the maxima and means over their channels say."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.ModuleDict({"conv": nn.Conv2d(2, 1, 7, padding=3)})

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.spatial["conv"](torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1))
        return x * gate.sigmoid()


class CBAM(nn.Module):
    """Convolutional block attention (Woo et al., 2018, arXiv:1807.06521)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ChannelGate = ChannelGate(channels)
        self.SpatialGate = SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.SpatialGate(self.ChannelGate(x))
        return y


class FeatureFusion(nn.Module):
    """Image features [1,C,h,w] and object features [n,C,h,w] to object features."""

    def __init__(self, image: int, objects: int, out: int) -> None:
        super().__init__()
        self.block1 = ResBlock(image + objects, out, shortcut=3)
        self.attention = CBAM(out)
        self.block2 = ResBlock(out, out, shortcut=3)

    def forward(self, image: Tensor, objects: Tensor) -> Tensor:
        x = self.block1(torch.cat([image.expand(len(objects), -1, -1, -1), objects], 1))
        y: Tensor = self.block2(x + self.attention(x))
        return y


class KeyEncoder(Trunk):
    """RGB to features at 1/4, 1/8 and 1/16."""

    def __init__(self) -> None:
        super().__init__(Bottleneck, (3, 4, 6), first="res2")


class ValueEncoder(Trunk):
    """A frame with its masks to what is stored of each object, and the objects' sensory memory after it."""

    def __init__(self, image: int, value: int, hidden: int) -> None:
        super().__init__(BasicBlock, (2, 2, 2), in_channels=3 + 2)
        self.fuser = FeatureFusion(image, self.channels[-1], value)
        self.hidden_reinforce = SensoryGRU(value, hidden)

    def encode(self, frame: Tensor, f16: Tensor, sensory: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """frame [1,3,H,W], its features [1,C,h,w], sensory [n,Ch,h,w], planes [n,H,W]: value [n,Cv,h,w], sensory."""
        masks = torch.stack([planes, other_objects(planes)], 1)
        *_, x = self(torch.cat([frame.expand(len(planes), -1, -1, -1), masks], 1))
        value = self.fuser(f16, x)
        return value, self.hidden_reinforce(value, sensory)


class UpsampleBlock(nn.Module):
    """Object features at twice the size, with the image's features there."""

    def __init__(self, skip: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.skip_conv = nn.Conv2d(skip, in_channels, 3, padding=1)
        self.out_conv = ResBlock(in_channels, out_channels, shortcut=3)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        y: Tensor = self.out_conv(self.skip_conv(skip) + upsampled(x, 2))
        return y


class Decoder(nn.Module):
    """What is recalled of each object to its logits [n,1,h,w] at 1/4 and its sensory memory."""

    def __init__(self, image: tuple[int, int, int], value: int, hidden: int, width: int) -> None:
        super().__init__()
        c4, c8, c16 = image
        half = width // 2
        self.fuser = FeatureFusion(c16, value + hidden, width)
        self.hidden_update = MultiScaleGRU((width, half, half + 1), half, hidden)
        self.up_16_8 = UpsampleBlock(c8, width, half)
        self.up_8_4 = UpsampleBlock(c4, half, half)
        self.pred = nn.Conv2d(half, 1, 3, padding=1)

    def forward(
        self, features: tuple[Tensor, Tensor, Tensor], recalled: Tensor, sensory: Tensor, *, update: bool
    ) -> tuple[Tensor, Tensor]:
        f4, f8, f16 = features
        x16 = self.fuser(f16, torch.cat([recalled, sensory], 1))
        x8 = self.up_16_8(f8, x16)
        x4 = self.up_8_4(f4, x8)
        logits = self.pred(F.relu(x4))
        if update:
            sensory = self.hidden_update(x16, x8, torch.cat([x4, logits], 1), sensory)
        return logits, sensory


class XMem(nn.Module):
    """The network and, in `step`, its walk through a video.

    Frames are RGB in 0..1 less ImageNet's mean, by its deviation. The authors let the shorter side be 480 at most;
    larger frames cost memory and gain nothing. Sides need not be multiples of anything: frames are padded.

    Args:
        key, value, hidden: channels of keys, of values and of sensory memory.
        width: channels of the decoder at 1/16.

    Attributes:
        multiple_of: of sides; 1, as steps pad to multiples of 16.
        half_safe: the authors evaluate in mixed precision; similarities and soft aggregation are computed in float32
            whatever the weights are.
    """

    multiple_of = 1
    half_safe = True

    def __init__(self, key: int = 64, value: int = 512, hidden: int = 64, width: int = 512) -> None:
        super().__init__()
        self.hidden = hidden
        self.key_encoder = KeyEncoder()
        image = self.key_encoder.channels
        self.value_encoder = ValueEncoder(image[-1], value, hidden)
        self.key_proj = KeyProjection(image[-1], key)
        self.decoder = Decoder(image, value, hidden, width)

    def step(
        self, frame: Tensor, mask: Mask | None, memory: XMemMemory | None, limits: Limits = LIMITS
    ) -> tuple[Tensor, XMemMemory]:
        """Segments the next frame.

        Objects of a later mask that are new form a bank of their own, as in Cutie. The official code consolidates them
        by what the first objects use, and stops when long-term memory is full in this case; else, and for objects that
        came together, the two agree. Without long-term memory the official one grows; this one keeps `max_frames`.

        Args:
            frame: [3,H,W], of one size throughout a video.
            mask: of the first frame, and of any later one that shows new objects or corrects known ones.
            memory: what the step before returned; None at the start of a video and after a cut. Never changed.

        Returns:
            Probabilities float32 [1+n,H,W] of the background and `memory.objects`, and the memory after this frame.

        Raises:
            ValueError: the first frame has no mask, or the mask or the memory is of another size.
        """
        padding = padding_to(frame.shape[-2], frame.shape[-1], 16)
        image = F.pad(frame[None], padding)
        features = self.key_encoder(image)
        projected = self.key_proj(features[-1])
        memory = self._started(memory, mask, features[-1])
        time = memory.time + 1
        store = mask is not None or time - memory.stored >= limits.every
        objects, sensory, banks = all_objects(memory.objects, mask), memory.sensory, memory.banks

        prob: Tensor | None = None
        if memory.objects and (mask is None or set(mask.objects) != set(objects)):
            readings = [bank.read(projected, limits.top_k) for bank in banks]
            recalled = torch.cat([reading for reading, _ in readings])
            banks = tuple(bank for _, bank in readings)
            logits, sensory = self.decoder(features, recalled, sensory, update=not store)
            prob = soft_aggregation(upsampled(logits, 4)[:, 0].sigmoid()).softmax(0)
        if mask is not None:
            prob = soft_aggregation(merged(prob, memory.objects, mask.padded(padding, image))).softmax(0)
            sensory = grown(sensory, len(objects))
        assert prob is not None  # there are objects, and either they were segmented or the mask shows them all
        if store:
            value, sensory = self.value_encoder.encode(image, features[-1], sensory, prob[1:].to(image))
            banks = store_frame(banks, projected, value, limits, survivors)
        memory = XMemMemory(time, time if store else memory.stored, objects, sensory, banks)
        return cropped(prob, padding), memory

    def _started(self, memory: XMemMemory | None, mask: Mask | None, f16: Tensor) -> XMemMemory:
        if memory is None:
            if mask is None:
                raise ValueError("the first frame of a video needs a mask")
            return XMemMemory(-1, 0, (), f16.new_zeros(0, self.hidden, *f16.shape[-2:]), ())
        check_size(memory.sensory, f16)
        return memory


def survivors(usage: Tensor, keep: int) -> Tensor:
    """In their order; of tokens as rarely used as the most used one that goes, none stays."""
    if keep >= len(usage):
        return torch.arange(len(usage), device=usage.device)
    threshold = usage.topk(len(usage) - keep, largest=False).values.amax()
    return (usage > threshold).nonzero()[:, 0]


def detect(state: Mapping[str, Tensor]) -> XMem | None:
    """The network (weights not loaded) whose sizes this state dict has, or None if it is of another family."""
    names = ("key_proj.key_proj", "value_encoder.fuser.block2.conv2", "decoder.hidden_update.transform")
    found = [state.get(f"{name}.weight") for name in (*names, "decoder.fuser.block2.conv2")]
    key, value, gates, width = (len(weight) if weight is not None and weight.ndim == 4 else 0 for weight in found)
    if min(key, gates // 3) < 1 or min(value, width) < 16:
        return None
    return XMem(key, value, gates // 3, width)
