"""Guided-filter refiners: carry a matte from the decoded size to the full frame along the frame's own edges.

Both fit, in 3x3 windows of the small image, a line from guide x = [rgb, mean(rgb)] to result y = [fgr residual, pha],
then apply the lines, enlarged, to the full-size guide (He & Sun, 2015, arXiv:1505.00996).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _guide(src: Tensor) -> Tensor:
    return torch.cat([src, src.mean(1, keepdim=True)], 1)


def _apply(src: Tensor, slope: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The lines [N,4,h,w] enlarged to src [N,3,H,W] and applied: fgr residual [N,3,H,W] and pha [N,1,H,W]."""
    size = src.shape[2:]
    slope = F.interpolate(slope, size, mode="bilinear", align_corners=False)
    offset = F.interpolate(offset, size, mode="bilinear", align_corners=False)
    y = slope * _guide(src) + offset
    return y[:, :3], y[:, 3:]


class FastGuidedFilter(nn.Module):
    """The classic fit by least squares, without weights."""

    eps = 1e-5

    def forward(self, src: Tensor, small: Tensor, fgr: Tensor, pha: Tensor, hid: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - one signature for both refiners
        """src [N,3,H,W], small [N,3,h,w], fgr residual, pha and hid [N,16,h,w] at the small size."""
        x, y = _guide(small), torch.cat([fgr, pha], 1)
        mean_x, mean_y = _mean3(x), _mean3(y)
        cov = _mean3(x * y) - mean_x * mean_y
        var = _mean3(x * x) - mean_x * mean_x
        slope = cov / (var + self.eps)
        return _apply(src, slope, mean_y - slope * mean_x)


def _mean3(x: Tensor) -> Tensor:
    """Sum over 3x3 windows by nine; outside the image counts as zero, as in the official refiner."""
    return F.avg_pool2d(x, 3, 1, 1)


class DeepGuidedFilter(nn.Module):
    """The fit's window weights and slope learned (Wu et al., 2018, arXiv:1803.05619); in all released checkpoints."""

    def __init__(self, hidden_channels: int) -> None:
        super().__init__()
        self.box_filter = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.conv = nn.Sequential(
            nn.Conv2d(4 + 4 + hidden_channels, hidden_channels, 1, bias=False),
            nn.BatchNorm2d(hidden_channels),
            nn.ReLU(),
            nn.Conv2d(hidden_channels, hidden_channels, 1, bias=False),
            nn.BatchNorm2d(hidden_channels),
            nn.ReLU(),
            nn.Conv2d(hidden_channels, 4, 1),
        )

    def forward(self, src: Tensor, small: Tensor, fgr: Tensor, pha: Tensor, hid: Tensor) -> tuple[Tensor, Tensor]:
        """src [N,3,H,W], small [N,3,h,w], fgr residual, pha and hid [N,16,h,w] at the small size."""
        x, y = _guide(small), torch.cat([fgr, pha], 1)
        mean_x, mean_y = self.box_filter(x), self.box_filter(y)
        cov = self.box_filter(x * y) - mean_x * mean_y
        var = self.box_filter(x * x) - mean_x * mean_x
        slope = self.conv(torch.cat([cov, var, hid], 1))
        return _apply(src, slope, mean_y - slope * mean_x)
