"""FER+ (Barsoum et al., 2016, arXiv:1608.01041): the emotion of a face, by the paper's VGG13.

The official network is CNTK's (microsoft/FERPlus, src/models.py) and its weights are an ONNX file; there is no official
torch definition. Names and shapes here are those of the initialisers of emotion-ferplus-8.onnx.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Classes by their index.
EMOTIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
SIDE = 64
#: The graph's own normalisation of grey values: (x - MIDDLE) / RANGE, its Constant339 and Constant343.
MIDDLE, RANGE = 127.5, 255.0
#: Numbers in the names of each convolution's kernel, by blocks that end in a halving; the bias has the next number.
#: Beside them the channels after the block.
BLOCKS = (((3, 23), 64), ((63, 83), 128), ((575, 595, 615), 256), ((655, 675, 695), 256))
#: The same for the dense layers, with the shape of each. The first is over [256,4,4].
DENSE = ((1367, (256, 4, 4, 1024)), (1403, (1024, 1024)), (1693, (1024, len(EMOTIONS))))


class FERPlus(nn.Module):
    """The VGG13 of FER+.

    Frames: faces, grey [B,1,64,64], values 0..255 as they are. Trained on photographs; it knows no drawn faces.

    Attributes:
        half_safe: False. Nothing is normalised between the thirteen layers, and no fact says that fp16 suffices.
    """

    half_safe = False

    def __init__(self) -> None:
        super().__init__()
        before = 1
        for numbers, channels in BLOCKS:
            for number in numbers:
                self._add(number, (channels, before, 3, 3), (channels, 1, 1))
                before = channels
        for number, shape in DENSE:
            self._add(number, shape, shape[-1:])

    def _add(self, number: int, weight: tuple[int, ...], bias: tuple[int, ...]) -> None:
        self.register_parameter(f"Parameter{number}", nn.Parameter(0.02 * torch.randn(weight)))
        self.register_parameter(f"Parameter{number + 1}", nn.Parameter(torch.zeros(bias)))

    def forward(self, x: Tensor) -> Tensor:
        """[B,1,64,64] to logits [B,8]; their softmax is the probability of each of `EMOTIONS`.

        Raises:
            ValueError: the input has another shape.
        """
        if x.shape[1:] != (1, SIDE, SIDE):
            raise ValueError(f"faces must be grey and {SIDE}x{SIDE}: [B,1,{SIDE},{SIDE}], got {list(x.shape)}")
        x = (x - MIDDLE) / RANGE
        for numbers, _ in BLOCKS:
            for number in numbers:
                weight, bias = self._layer(number)
                x = F.relu(F.conv2d(x, weight, bias.flatten(), padding=1), inplace=True)
            x = F.max_pool2d(x, 2)
        x = x.flatten(1)
        for number, shape in DENSE:
            weight, bias = self._layer(number)
            if number != DENSE[0][0]:
                x = F.relu(x)
            x = x @ weight.view(-1, shape[-1]) + bias
        return x

    def _layer(self, number: int) -> tuple[Tensor, Tensor]:
        return self.get_parameter(f"Parameter{number}"), self.get_parameter(f"Parameter{number + 1}")


def detect(state: Mapping[str, Tensor]) -> FERPlus | None:
    """The network (weights not loaded) if this state dict is one's, or None if it is of another family."""
    first, dense = state.get("Parameter3"), state.get("Parameter1367")
    ours = first is not None and dense is not None and first.shape == (64, 1, 3, 3) and dense.shape == (256, 4, 4, 1024)
    return FERPlus() if ours else None
