"""The colour normalisation of ImageNet-trained encoders, as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ImageNetNormalise(nn.Module):
    """(x - mean) / std per channel. Its constants move with the module but are no part of its state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
