"""LaMa (Suvorov et al., 2022, arXiv:2109.07161): fills large holes in a picture with fast Fourier convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.networks.sizes import check_sides

#: Features beside and in the spectral branch: a quarter and three quarters of 512.
LOCAL, GLOBAL = 128, 384
#: Position of the first residual block in the generator's list.
FIRST_BLOCK = 5
#: Channels at full size, 1/2 and 1/4 on the way up.
UP = (256, 128, 64)

#: Features of the local branch and, from 1/8 on, of the global one.
Pair = tuple[Tensor, Tensor | None]


class FourierUnit(nn.Module):
    """A 1x1 convolution of the spectrum [B,C,h,w]: every output pixel sees the whole picture.

    Transforms run in float32 whatever the weights are: half-precision FFTs know only powers of two.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_layer = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, h, w = x.shape
        spectrum = torch.view_as_real(torch.fft.rfft2(x.float(), norm="ortho"))  # [B, C, h, w//2 + 1, 2]
        parts = spectrum.movedim(-1, 2).flatten(1, 2).to(x.dtype)  # real and imaginary parts are neighbours
        parts = F.relu(self.bn(self.conv_layer(parts))).float()
        pairs = parts.view(batch, channels, 2, h, w // 2 + 1).movedim(2, -1).contiguous()
        y: Tensor = torch.fft.irfft2(torch.view_as_complex(pairs), s=(h, w), norm="ortho")
        return y.to(x.dtype)


class SpectralTransform(nn.Module):
    """The global branch's own path, at half of its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Sequential(nn.Conv2d(channels, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU())
        self.fu = FourierUnit(half)
        self.conv2 = nn.Conv2d(half, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        y: Tensor = self.conv2(x + self.fu(x))
        return y


class FFC(nn.Module):
    """Fast Fourier convolution (Chi et al., 2020): two branches that feed each other; a missing one has 0 channels.

    Args:
        into, out: channels of the local and the global branch.
        reflect: pixels by which features are mirrored at the border first.
    """

    def __init__(self, into: tuple[int, int], out: tuple[int, int], kernel: int, stride: int, reflect: int) -> None:
        super().__init__()
        self.reflect = [reflect] * 4
        self.convl2l = nn.Conv2d(into[0], out[0], kernel, stride, bias=False)
        self.convl2g = nn.Conv2d(into[0], out[1], kernel, stride, bias=False) if out[1] else None
        self.convg2l = nn.Conv2d(into[1], out[0], kernel, stride, bias=False) if into[1] else None
        self.convg2g = SpectralTransform(out[1]) if into[1] else None

    def forward(self, pair: Pair) -> Pair:
        x_l, x_g = pair
        around_l = F.pad(x_l, self.reflect, mode="reflect")
        y_l = self.convl2l(around_l)
        y_g = self.convl2g(around_l) if self.convl2g is not None else None
        if x_g is not None and self.convg2l is not None and self.convg2g is not None:
            y_l = y_l + self.convg2l(F.pad(x_g, self.reflect, mode="reflect"))
            y_g = y_g + self.convg2g(x_g)
        return y_l, y_g


class FFCLayer(nn.Module):
    """An FFC with BatchNorm and ReLU on each branch."""

    def __init__(
        self, into: tuple[int, int], out: tuple[int, int], kernel: int = 3, stride: int = 1, reflect: int = 1
    ) -> None:
        super().__init__()
        self.ffc = FFC(into, out, kernel, stride, reflect)
        self.bn_l = nn.BatchNorm2d(out[0])
        self.bn_g = nn.BatchNorm2d(out[1]) if out[1] else None

    def forward(self, pair: Pair) -> Pair:
        y_l, y_g = self.ffc(pair)
        return F.relu(self.bn_l(y_l)), F.relu(self.bn_g(y_g)) if self.bn_g is not None else None


class FFCResidualBlock(nn.Module):
    """Two FFC layers around a shortcut in both branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = FFCLayer((LOCAL, GLOBAL), (LOCAL, GLOBAL))
        self.conv2 = FFCLayer((LOCAL, GLOBAL), (LOCAL, GLOBAL))

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        y_l, y_g = self.conv2(self.conv1(pair))
        return pair[0] + y_l, pair[1] + y_g


class LaMa(nn.Module):
    """The generator of big-lama, down to 1/8 and back.

    State-dict names are those of advimman/lama's `FFCResNetGenerator` with the options of its big-lama.yaml. Pictures
    are RGB in 0..1; `inpaint` prepares them and takes any size.

    Not safe in half precision although the transforms keep float32: a picture's mean grows with its size in the
    spectrum, and users of the trained weights report darkened pictures.

    Attributes:
        multiple_of: the input's sides must be multiples of this.
        minimum: the smallest side: at 1/8 there must be a pixel to mirror.
    """

    multiple_of = 8
    minimum = 16
    half_safe = False

    def __init__(self, blocks: int = 18) -> None:
        super().__init__()
        self.blocks = blocks
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            FFCLayer((4, 0), (64, 0), kernel=7, reflect=0),
            FFCLayer((64, 0), (128, 0), stride=2),
            FFCLayer((128, 0), (256, 0), stride=2),
            FFCLayer((256, 0), (LOCAL, GLOBAL), stride=2),
            *(FFCResidualBlock() for _ in range(blocks)),
            nn.Identity(),  # the branches are joined here
        ]
        for out in UP:
            layers += [nn.ConvTranspose2d(2 * out, out, 3, 2, 1, output_padding=1), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(UP[-1], 3, 7), nn.Sigmoid()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The picture without its hole and the hole, [B,4,H,W] = cat(rgb * (1 - mask), mask) -> RGB 0..1 [B,3,H,W].

        Raises:
            ValueError: x has not four channels, or a side is not a multiple of 8 or below 16.
        """
        if x.ndim != 4 or x.shape[1] != 4:
            raise ValueError(f"input must be [B,4,H,W], got {list(x.shape)}")
        check_sides(x, self.multiple_of, self.minimum)
        mirror, *layers = self.model
        pair: Pair = mirror(x), None
        joined = FIRST_BLOCK + self.blocks - 1
        for layer in layers[:joined]:
            pair = layer(pair)
        y = torch.cat([part for part in pair if part is not None], 1)
        for layer in layers[joined:]:
            y = layer(y)
        return y


def inpaint(network: LaMa, image: Tensor, mask: Tensor) -> Tensor:
    """The picture with its hole filled; pixels outside of the hole are those given.

    Other sides than multiples of 8 are mirrored at the right and at the bottom, edge pixels included, as the official
    tool does, and the result is cropped.

    Args:
        image: RGB in 0..1, [B,3,H,W].
        mask: [B,1,H,W]; above 0 is hole.

    Returns:
        RGB in 0..1 like `image`.

    Raises:
        ValueError: the mask is of another size than the image.
    """
    if mask.shape != (len(image), 1, *image.shape[2:]):
        raise ValueError(f"the mask of an image {list(image.shape)} cannot be {list(mask.shape)}")
    height, width = image.shape[2:]
    hole = (mask > 0).to(image.dtype)
    x = torch.cat([image * (1 - hole), hole], 1).to(next(network.parameters()).dtype)
    for axis, side in ((2, height), (3, width)):
        padded = max(network.minimum, side + -side % network.multiple_of)
        if padded != side:
            x = x.index_select(axis, _mirrored(side, padded, x.device))
    filled: Tensor = network(x)[..., :height, :width].to(image.dtype)
    return hole * filled + (1 - hole) * image


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept must also serve calls outside of inference mode
def _mirrored(side: int, padded: int, device: torch.device) -> Tensor:
    """For each of `padded` places the one of `side` that it shows: 0..side-1, side-1..0, and again."""
    place = torch.arange(padded, device=device) % (2 * side)
    return torch.minimum(place, 2 * side - 1 - place)


def detect(state: Mapping[str, Tensor]) -> LaMa | None:
    """The network (weights not loaded) with the blocks that this state dict has, or None if it is of another family."""
    if "model.1.ffc.convl2l.weight" not in state or "model.4.ffc.convl2g.weight" not in state:
        return None
    blocks = 0
    while f"model.{FIRST_BLOCK + blocks}.conv1.ffc.convl2l.weight" in state:
        blocks += 1
    return LaMa(blocks) if blocks else None
