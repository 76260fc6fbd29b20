"""BiRefNet whole: Swin at two scales, and the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.networks.birefnet.decoder import Decoder, DecoderBlock
from actors.networks.birefnet.swin import SwinTransformer
from actors.networks.sizes import check_sides

Backbone = Literal["swin_t", "swin_s", "swin_b", "swin_l"]

#: Channels of the first stage, blocks of the third, and side of the window, by the backbone's size.
SIZES: Mapping[Backbone, tuple[int, int, int]] = {
    "swin_t": (96, 6, 7),
    "swin_s": (96, 18, 7),
    "swin_b": (128, 18, 12),
    "swin_l": (192, 18, 12),
}


class BiRefNet(nn.Module):
    """The official network with a Swin backbone: large is the standard one and ToonOut's, tiny is `BiRefNet_lite`.

    Frames: RGB [B,3,H,W] in 0..1, then ImageNet mean and deviation; trained at 1024x1024.

    Attributes:
        multiple_of: of both sides.
        half_safe: the official README runs it in fp16. Deformable convolutions compute positions and sums in fp32.
    """

    multiple_of = 32
    half_safe = True

    def __init__(self, backbone: Backbone = "swin_l") -> None:
        super().__init__()
        first, depth, window = SIZES[backbone]
        self.bb = SwinTransformer(first, (2, 2, depth, 2), window)
        channels = [2 * first * 2**i for i in (3, 2, 1, 0)]  # twice: two scales side by side
        self.squeeze_module = nn.Sequential(DecoderBlock(sum(channels), channels[0]))
        self.decoder = Decoder(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] to logits [B,1,H,W], whose sigmoid is the mask. ValueError if a side is no multiple of 32."""
        *features, context = self.encode(x)
        y: Tensor = self.decoder(x, [*features, self.squeeze_module(context)])
        return y

    def encode(self, x: Tensor) -> list[Tensor]:
        """[B,3,H,W] to features at 1/4, 1/8 and 1/16, and at 1/32 together with all the others."""
        check_sides(x, self.multiple_of)
        small = F.interpolate(x, (x.shape[2] // 2, x.shape[3] // 2), mode="bilinear", align_corners=True)
        features = [
            torch.cat((large, _resize(coarse, large)), 1)
            for large, coarse in zip(self.bb(x), self.bb(small), strict=True)
        ]
        *finer, last = features
        return [*finer, torch.cat((*(_resize(feature, last) for feature in finer), last), 1)]


def detect(state: Mapping[str, Tensor]) -> BiRefNet | None:
    """The network (weights not loaded) whose sizes this state dict has, or None if it is of another family."""
    embed = state.get("bb.patch_embed.proj.weight")
    if embed is None or "decoder.conv_out1.0.weight" not in state:
        return None
    depth = 18 if "bb.layers.2.blocks.6.norm1.weight" in state else 6
    size = next((name for name, sizes in SIZES.items() if sizes[:2] == (embed.shape[0], depth)), None)
    return BiRefNet(size) if size else None


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)
