"""The Cutie network and its walk through a video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.networks.resnet import BasicBlock, Bottleneck, Trunk
from actors.networks.rvm.normalise import ImageNetNormalise
from actors.networks.tracking.bank import Bank, Limits, Projected, store_frame
from actors.networks.tracking.cutie.layers import MaskDecoder, MaskEncoder, PixelFuser
from actors.networks.tracking.cutie.transformer import HEADS, QUERIES, ObjectSummarizer, ObjectTransformer
from actors.networks.tracking.masks import (
    Mask,
    all_objects,
    check_size,
    cropped,
    merged,
    padding_to,
    soft_aggregation,
)
from actors.networks.tracking.objects import grown, upsampled
from actors.networks.tracking.value import Value

Encoder = Literal["resnet50", "resnet18"]
LIMITS = Limits(long_spare=2000)


@dataclass(frozen=True, slots=True)
class CutieMemory(Value):
    """What Cutie knows after a frame.

    Attributes:
        time: number of that frame, counted from the first mask's.
        stored: number of the last frame in the banks.
        objects: the caller's numbers, in the order of the probabilities' channels.
        sensory: [n,C,h,w] at 1/16, a recurrent state of each object.
        summaries: float32 [n,16,C+1], sums over all stored frames of each object's features and of their weights.
        seen: [n,h,w] at 1/16, the objects' probabilities in the last frame.
        banks: of objects that came together, in the order of `objects`.
    """

    time: int
    stored: int
    objects: tuple[int, ...]
    sensory: Tensor
    summaries: Tensor
    seen: Tensor
    banks: tuple[Bank, ...]


class KeyProjection(nn.Module):
    """Features at 1/16 to key, shrinkage of 1 and more, and selection in 0..1."""

    def __init__(self, in_channels: int, channels: int, key: int) -> None:
        super().__init__()
        self.pix_feat_proj = nn.Conv2d(in_channels, channels, 1)
        self.key_proj = nn.Conv2d(channels, key, 3, padding=1)
        self.d_proj = nn.Conv2d(channels, 1, 3, padding=1)
        self.e_proj = nn.Conv2d(channels, key, 3, padding=1)

    def forward(self, x: Tensor) -> Projected:
        x = self.pix_feat_proj(x)
        # The square of a half overflows beyond 256.
        return Projected(self.key_proj(x), self.d_proj(x).float().square() + 1, self.e_proj(x).sigmoid())


class Cutie(nn.Module):
    """The network and, in `step`, its walk through a video.

    Frames are RGB in 0..1; the network normalises them. The authors let the shorter side be 480 at most; larger frames
    cost memory and gain little. Sides need not be multiples of anything: frames are padded.

    Attributes:
        multiple_of: of sides; 1, as steps pad to multiples of 16.
        half_safe: the authors offer mixed precision; similarities, soft aggregation and summaries are computed in
            float32 whatever the weights are.
    """

    multiple_of = 1
    half_safe = True

    def __init__(self, encoder: Encoder = "resnet50", channels: int = 256, key: int = 64) -> None:
        super().__init__()
        self.channels = channels
        self.normalise = ImageNetNormalise()
        block = Bottleneck if encoder == "resnet50" else BasicBlock
        depths = (3, 4, 6) if encoder == "resnet50" else (2, 2, 2)
        self.pixel_encoder = Trunk(block, depths, first="res2")
        image = self.pixel_encoder.channels
        self.pix_feat_proj = nn.Conv2d(image[-1], channels, 1)
        self.key_proj = KeyProjection(image[-1], channels, key)
        self.mask_encoder = MaskEncoder(channels)
        self.mask_decoder = MaskDecoder(image, channels)
        self.pixel_fuser = PixelFuser(channels)
        self.object_transformer = ObjectTransformer(channels)
        self.object_summarizer = ObjectSummarizer(channels)
        # A head of the training recipe: never called here, but part of every checkpoint.
        head = nn.ModuleDict({"projection": nn.Conv2d(channels, channels + 1, 1)})
        self.aux_computer = nn.ModuleDict({"sensory_aux": head})

    def step(
        self, frame: Tensor, mask: Mask | None, memory: CutieMemory | None, limits: Limits = LIMITS
    ) -> tuple[Tensor, CutieMemory]:
        """Segments the next frame.

        A later mask that shows only some of the known objects corrects these; the official code takes no such mask.

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
        # The border is padded before it is normalised: black, not grey.
        image = self.normalise(F.pad(frame[None], padding))
        features = self.pixel_encoder(image)
        pixel = self.pix_feat_proj(features[-1])
        projected = self.key_proj(features[-1])
        memory = self._started(memory, mask, pixel)
        time = memory.time + 1
        store = mask is not None or time - memory.stored >= limits.every
        objects, sensory, banks = all_objects(memory.objects, mask), memory.sensory, memory.banks

        prob: Tensor | None = None
        if memory.objects and (mask is None or set(mask.objects) != set(objects)):
            readout, banks = self._recalled(pixel, projected, memory, limits)
            update = time - memory.stored in staggered(limits)
            logits, sensory = self.mask_decoder(features, readout, sensory, update=update)
            logits = soft_aggregation(logits[:, 0].sigmoid())
            prob = upsampled(logits[None], 4)[0].softmax(0)
        if mask is not None:
            prob = soft_aggregation(merged(prob, memory.objects, mask.padded(padding, image))).softmax(0)
        assert prob is not None  # there are objects, and either they were segmented or the mask shows them all
        planes = prob[1:].to(image)
        seen, summaries = F.avg_pool2d(planes, 16), memory.summaries
        if store:
            value, sensory = self.mask_encoder.encode(image, pixel, grown(sensory, len(objects)), planes)
            summaries = grown(summaries, len(objects)) + self.object_summarizer(seen, value)
            banks = store_frame(banks, projected, value, limits, survivors)
        stored = time if store else memory.stored
        return cropped(prob, padding), CutieMemory(time, stored, objects, sensory, summaries, seen, banks)

    def _started(self, memory: CutieMemory | None, mask: Mask | None, pixel: Tensor) -> CutieMemory:
        if memory is None:
            if mask is None:
                raise ValueError("the first frame of a video needs a mask")
            nothing = pixel.new_zeros(0, *pixel.shape[1:])
            summaries = torch.zeros(0, QUERIES, self.channels + 1, device=pixel.device)
            return CutieMemory(-1, 0, (), nothing, summaries, nothing[:, 0], ())
        check_size(memory.sensory, pixel)
        return memory

    def _recalled(
        self, pixel: Tensor, projected: Projected, memory: CutieMemory, limits: Limits
    ) -> tuple[Tensor, tuple[Bank, ...]]:
        """The objects' readouts [n,C,h,w], and the banks with their use counted.

        Objects of one bank know of each other here, those of different banks do not, as in the official code.
        """
        sizes = [bank.objects for bank in memory.banks]
        states = zip(*(torch.split(x, sizes) for x in (memory.sensory, memory.seen, memory.summaries)), strict=True)
        readouts, banks = [], []
        for bank, (sensory, seen, summaries) in zip(memory.banks, states, strict=True):
            recalled, used = bank.read(projected, limits.top_k)
            readout, _ = self.object_transformer(self.pixel_fuser(pixel, recalled, sensory, seen), summaries)
            readouts.append(readout)
            banks.append(used)
        return torch.cat(readouts), tuple(banks)


def staggered(limits: Limits) -> set[int]:
    """At which distances from the last stored frame the decoder updates sensory memory: evenly, `stagger` of them."""
    if limits.stagger >= limits.every:
        return set(range(1, limits.every + 1))
    return {round(x) for x in torch.linspace(1, limits.every, limits.stagger, dtype=torch.float64).tolist()}


def survivors(usage: Tensor, keep: int) -> Tensor:
    """The most used tokens."""
    return usage.topk(keep).indices


def detect(state: Mapping[str, Tensor]) -> Cutie | None:
    """The network (weights not loaded) whose sizes this state dict has, or None if it is of another family."""
    projection, key = state.get("pix_feat_proj.weight"), state.get("key_proj.key_proj.weight")
    if projection is None or key is None or "object_summarizer.input_proj.weight" not in state:
        return None
    if projection.ndim != 4 or key.ndim != 4 or len(projection) % HEADS:
        return None
    channels, features = projection.shape[:2]
    return Cutie("resnet50" if features == 1024 else "resnet18", channels, len(key))
