"""IS-Net (Qin et al., 2022, arXiv:2203.03041): U-2-Net at half size, for fine outlines; of DIS, and for anime."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from actors.networks.u2net import NestedU, detect_width


class ISNet(NestedU):
    """The U of U-2-Net behind a convolution of stride 2, without a fused map.

    Maps are logits, as in SkyTNT's anime-segmentation; the original (xuebinqin/DIS) has the same state dict and returns
    their sigmoid. The mask is the sigmoid of the first map.

    Frames: RGB [B,3,H,W] of any size. SkyTNT's anime weights: 0..1 without mean and deviation, letterboxed in the
    middle of 1024x1024. DIS: 1024x1024, 0..1 less 0.5.

    Attributes:
        half_safe: every convolution of the U is followed by a batch norm, and SkyTNT trains in fp16.
    """

    half_safe = True

    def __init__(self) -> None:
        stem = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        super().__init__("full", stem=stem, in_channels=64)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """[B,3,H,W] to six maps [B,1,H,W] of logits, the finest first, and the features behind them, at 1/2 to 1/64."""
        features = self.features(self.conv_in(x))
        return self.side_maps(features, (x.shape[2], x.shape[3])), features


def detect(state: Mapping[str, Tensor]) -> ISNet | None:
    """The network (weights not loaded) if this state dict is one's, or None if it is of another family."""
    return ISNet() if "conv_in.weight" in state and detect_width(state) == "full" else None
