"""All-pairs correlation of two feature maps, and windows of it around where each pixel is believed to have moved."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

#: Levels of the pyramid; a window at level l spans 2^l times as far.
LEVELS = 4


class CorrelationPyramid:
    """Similarity of every pixel of the first map to every pixel of the second, at four sizes of the second.

    Always float32, whatever the maps are: at half precision a position beyond 128 is a sixteenth of a pixel off.
    Takes 5.4 * (h * w)^2 bytes a pair: 1.1 GB at 1280 x 720, 5.6 GB at 1920 x 1080.

    Args:
        first, second: features [B,C,h,w]; h and w at least 2^LEVELS.
        radius: windows are 2 * radius + 1 wide and high.
    """

    def __init__(self, first: Tensor, second: Tensor, radius: int) -> None:
        self.radius = radius
        batch, channels, h, w = first.shape
        # The small factor is scaled, not the large product, which there should be only once.
        queries = first.float().flatten(2).transpose(1, 2) / channels**0.5  # [B, h*w, C]
        level = (queries @ second.float().flatten(2)).view(batch * h * w, 1, h, w)
        self.levels = [level]
        for _ in range(LEVELS - 1):
            level = F.avg_pool2d(level, 2)
            self.levels.append(level)
        # (x, y) of each level's last pixel
        self.lasts = [level.new_tensor([level.shape[3] - 1, level.shape[2] - 1]) for level in self.levels]

    def windows(self, positions: Tensor) -> Tensor:
        """Similarities around positions (x, y) in the second map [B,2,h,w] -> [B,LEVELS*(2*radius+1)^2,h,w]."""
        batch, _, h, w = positions.shape
        centres = positions.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
        window = _window(self.radius, positions.device)
        sampled = []
        for power, (level, last) in enumerate(zip(self.levels, self.lasts, strict=True)):
            grid = 2 * (centres / 2**power + window) / last - 1
            sampled.append(F.grid_sample(level, grid, align_corners=True).view(batch, h, w, -1))
        return torch.cat(sampled, -1).permute(0, 3, 1, 2).contiguous()


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept must also serve calls outside of inference mode
def _window(radius: int, device: torch.device) -> Tensor:
    """Offsets (x, y) [2*radius+1, 2*radius+1, 2]. The checkpoints' windows run down columns: y is the faster one."""
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=device)
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept must also serve calls outside of inference mode
def pixel_grid(h: int, w: int, device: torch.device) -> Tensor:
    """Every pixel's own position (x, y), [1,2,h,w]."""
    y, x = torch.meshgrid(
        torch.arange(h, dtype=torch.float32, device=device),
        torch.arange(w, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([x, y])[None]
