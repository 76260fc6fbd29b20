"""RAFT: two images in, the optical flow from the first to the second out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.networks.raft.correlation import LEVELS, CorrelationPyramid, pixel_grid
from actors.networks.raft.encoders import Block, BottleneckBlock, Encoder, Norm, ResidualBlock, identity
from actors.networks.raft.update import FULL, SMALL, Size, UpdateBlock
from actors.networks.sizes import check_sides

#: Iterations of the refinement that the paper's tables use for video.
ITERATIONS = 12


class RAFT(nn.Module):
    """Recurrent all-pairs field transforms.

    State-dict names are those of princeton-vl/RAFT. Frames are RGB in 0..255, both sides multiples of 8; `estimate`
    takes any size.

    In half precision only the convolutions run in half, as in the authors' mixed precision; positions, correlation
    and flow stay float32. Still not called safe: every step feeds its rounding to the next, and users of flow
    (ProPainter) keep to float32.

    Attributes:
        multiple_of: both sides of a frame must be multiples of this.
        minimum: the smallest side: below it the coarsest correlation is one pixel, where positions are undefined.

    Args:
        size: `FULL` or `SMALL`.
        attention, aggregator: GMA's additions.
    """

    multiple_of = 8
    minimum = 8 * 2**LEVELS
    half_safe = False

    def __init__(
        self, size: Size = FULL, attention: nn.Module | None = None, aggregator: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.size = size
        block: Block = ResidualBlock if size.separable else BottleneckBlock
        context_norm: Norm = nn.BatchNorm2d if size.separable else identity
        self.fnet = Encoder(block, size.widths, size.features, nn.InstanceNorm2d)
        self.cnet = Encoder(block, size.widths, size.hidden + size.context, context_norm)
        self.update_block = UpdateBlock(size, aggregator)
        self.att = attention

    def forward(
        self, image1: Tensor, image2: Tensor, iters: int = ITERATIONS, flow_init: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Where each pixel of image1 is in image2, relative to its own place.

        Args:
            image1, image2: RGB in 0..255, [B,3,H,W] of the network's dtype.
            iters: steps of refinement.
            flow_init: where to start, in pixels of 1/8, [B,2,H/8,W/8]; zero flow without it.

        Returns:
            low: flow (x, y) in pixels of 1/8, [B,2,H/8,W/8] float32.
            full: flow in pixels, [B,2,H,W] float32.

        Raises:
            ValueError: the images differ in size, or a side is not a multiple of 8 or below 128; iters below 1.
        """
        self._check(image1, image2, iters)
        batch, _, height, width = image1.shape
        images = 2 * (torch.cat([image1, image2]) / 255) - 1
        features1, features2 = self.fnet(images).split(batch)
        pyramid = CorrelationPyramid(features1, features2, self.size.radius)
        state, context = self.cnet(images[:batch]).split([self.size.hidden, self.size.context], 1)
        state, context = torch.tanh(state), torch.relu(context)
        attention = None if self.att is None else self.att(context)

        origin = pixel_grid(height // 8, width // 8, images.device)
        positions = origin.expand(batch, -1, -1, -1)
        if flow_init is not None:
            positions = positions + flow_init
        for _ in range(iters):
            windows = pyramid.windows(positions).to(images.dtype)
            flow = (positions - origin).to(images.dtype)
            state, correction = self.update_block(state, context, windows, flow, attention)
            positions = positions + correction
        low = positions - origin
        return low, self.update_block.enlarge(low, state)

    def _check(self, image1: Tensor, image2: Tensor, iters: int) -> None:
        if image1.shape != image2.shape or image1.ndim != 4 or image1.shape[1] != 3:
            raise ValueError(
                f"images must both be [B,3,H,W] of one size, got {list(image1.shape)} and {list(image2.shape)}"
            )
        check_sides(image1, self.multiple_of, self.minimum)
        if iters < 1:
            raise ValueError(f"iters must be at least 1, got {iters}")


def estimate(network: RAFT, image1: Tensor, image2: Tensor, iters: int = ITERATIONS) -> Tensor:
    """Flow of frames of any size: their borders are repeated, half on each side, as the official tools do.

    Args, raises: as `RAFT.forward`, but for the sides.

    Returns:
        Flow (x, y) from image1 to image2 in pixels, [B,2,H,W] float32.
    """
    height, width = image1.shape[2:]
    missing_y, missing_x = (max(network.minimum, s + -s % network.multiple_of) - s for s in (height, width))
    top, left = missing_y // 2, missing_x // 2
    around = (left, missing_x - left, top, missing_y - top)
    flow: Tensor
    _, flow = network(*(F.pad(image, around, mode="replicate") for image in (image1, image2)), iters=iters)
    return flow[..., top : top + height, left : left + width]


def detect(state: Mapping[str, Tensor]) -> RAFT | None:
    """The network (weights not loaded) of the size that this state dict has, or None if it is of another family."""
    first = state.get("update_block.encoder.convc1.weight")
    if first is None or "fnet.conv1.weight" not in state or "att.to_qk.weight" in state:
        return None
    return RAFT(FULL if "update_block.mask.0.weight" in state else SMALL)
