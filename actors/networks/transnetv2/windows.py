"""A film through TransNet V2 in pieces of any length: the same windows, so the same scores, as in one piece.

The authors repeat the first frame 25 times in front of the film and the last one behind it, look at 100 frames every
50, and keep the middle 50 of each. What must be remembered between pieces is the frames that are still to be scored
and 25 before them, at most 99.

    state = None
    for frames in pieces:
        scores, state = step(network, frames, state)
    scores = finish(network, state)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from actors.networks.transnetv2.network import FRAME, TransNetV2

WINDOW = 100
STRIDE = 50
#: Frames at either end of a window whose scores are not used.
MARGIN = (WINDOW - STRIDE) // 2


class Scores(NamedTuple):
    """Probabilities 0..1 of consecutive frames, float32 [N] on the network's device.

    Attributes:
        one_hot: of being the middle of a transition; a shot ends where this exceeds the threshold.
        many_hot: of being any part of a transition.
    """

    one_hot: Tensor
    many_hot: Tensor


def step(network: TransNetV2, frames: Tensor, state: Tensor | None = None) -> tuple[Scores, Tensor]:
    """Scores what can be scored with the next frames of a film.

    Args:
        frames: uint8 RGB [N,27,48,3], resized by the caller; N any number from 1.
        state: what the previous call returned; None at the film's start.

    Returns:
        Scores of the next frames in order, those of earlier calls first. They lag behind: 25 to 74 frames of what
        was given are still without scores.
        The state, uint8 [at most 99,27,48,3] on the frames' device. It is a value: the call changes nothing of it.

    Raises:
        ValueError: no frames, or frames that are not uint8 or of another size.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1:] != FRAME or not len(frames):
        raise ValueError(f"frames must be uint8 [N,27,48,3], got {frames.dtype} {list(frames.shape)}")
    if state is None:
        state = frames[:1].expand(MARGIN, -1, -1, -1)
    known = torch.cat([state.to(frames.device), frames])
    windows = max(0, (len(known) - WINDOW) // STRIDE + 1)
    return _score(network, known, windows), known[windows * STRIDE :].clone()


def finish(network: TransNetV2, state: Tensor) -> Scores:
    """Scores of the frames that `step` has not scored yet: the film ends with the last one given."""
    waiting = len(state) - MARGIN
    windows = -(-waiting // STRIDE)
    behind = state[-1:].expand(MARGIN + windows * STRIDE - waiting, -1, -1, -1)
    scores = _score(network, torch.cat([state, behind]), windows)
    return Scores(scores.one_hot[:waiting], scores.many_hot[:waiting])


def _score(network: TransNetV2, frames: Tensor, windows: int) -> Scores:
    """Scores of the middles of the windows that begin at 0, STRIDE, ...

    One window a call: how many are ready depends on the pieces, and a batch need not round as its parts do.
    """
    device = network.fc1.weight.device
    found = [torch.empty(2, 0, device=device)]
    for start in range(0, windows * STRIDE, STRIDE):
        logits = network(frames[None, start : start + WINDOW].to(device))
        found.append(torch.stack([torch.sigmoid(x[0, MARGIN:-MARGIN, 0].float()) for x in logits]))
    return Scores(*torch.cat(found, 1))
