"""The networks that are measured, each with the inputs of one call at its own working size.

Needs torch and numpy alone. Names are those of the weights registry where the weights are published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from actors.networks.birefnet import BiRefNet
from actors.networks.bisenet import BiSeNet
from actors.networks.ferplus import FERPlus
from actors.networks.inpaint.e2fgvi import E2FGVI
from actors.networks.inpaint.flow_completion import FlowCompletion
from actors.networks.inpaint.propainter import ProPainter
from actors.networks.inpaint.sttn import STTN
from actors.networks.isnet import ISNet
from actors.networks.lama import LaMa
from actors.networks.modnet import MODNet
from actors.networks.raft import GMA, RAFT
from actors.networks.raft.update import SMALL
from actors.networks.rrdb import RRDBNet
from actors.networks.rvm import MattingNetwork
from actors.networks.srvgg import SRVGGNetCompact
from actors.networks.tracking.bank import Limits
from actors.networks.tracking.cutie import Cutie
from actors.networks.tracking.deaot import DeAOT, DeAOTLimits
from actors.networks.tracking.masks import Mask
from actors.networks.tracking.xmem import XMem
from actors.networks.transnetv2 import TransNetV2
from actors.networks.transnetv2.windows import STRIDE, WINDOW
from actors.networks.u2net import U2Net
from actors.networks.x3d import CLIPS, DEEP, SHALLOW, X3D

UPSCALE: Mapping[str, Callable[[], nn.Module]] = {
    "realesr-animevideov3": lambda: SRVGGNetCompact(convs=16, scale=4),
    "realesr-general-x4v3": lambda: SRVGGNetCompact(convs=32, scale=4),
    "realesrgan-x4plus-anime-6b": lambda: RRDBNet(blocks=6, scale=4),
    "realesrgan-x2plus": lambda: RRDBNet(blocks=23, scale=2),
    "realesrgan-x4plus": lambda: RRDBNet(blocks=23, scale=4),
}
MATTE: Mapping[str, Callable[[], MattingNetwork]] = {
    "rvm-mobilenetv3": lambda: MattingNetwork("mobilenetv3"),
    "rvm-resnet50": lambda: MattingNetwork("resnet50"),
}
#: The matting networks look at the frame at this long side, as the matte family does unless told otherwise.
MATTE_LONG_SIDE = 768
#: Frames of a call of a video inpainting network: neighbours, as the official tools give, and references.
LOCAL, REFERENCES = 11, 4
#: Frames that a tracker remembers when its step is measured; that step stores none.
REMEMBERED = 4

Inputs = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """What inputs are made for: network in eval mode with its weights' type, frames a call, sides."""

    network: nn.Module
    batch: int
    height: int
    width: int
    dtype: torch.dtype

    def frames(self, *shape: int) -> Tensor:
        """Random numbers in 0..1, [*shape, H, W]."""
        return torch.rand(*shape, self.height, self.width).to(self.dtype)


def _pictures(scale: Scale) -> Inputs:
    return (scale.frames(scale.batch, 3),)


def _plain(network: nn.Module, *inputs: Any) -> object:
    return network(*inputs)


@dataclass(frozen=True, slots=True)
class Subject:
    """A network and how it is called.

    Attributes:
        build: in the official size, with random weights.
        own: width and height that it is meant to work at.
        inputs: of one call, on torch's default device.
        call: the network with these inputs.
        frames: how many frames a call is done with, for a batch of one.
    """

    build: Callable[[], nn.Module]
    own: tuple[int, int]
    inputs: Callable[[Scale], Inputs] = _pictures
    call: Callable[..., object] = _plain
    frames: int = 1


class Call(nn.Module):
    """A subject as a function of its inputs."""

    def __init__(self, subject: Subject, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._call = subject.call

    def forward(self, *inputs: Any) -> object:
        return self._call(self.network, *inputs)


def _ratio(x: Tensor) -> float:
    return min(1.0, MATTE_LONG_SIDE / max(x.shape[-2:]))


def _with_states(scale: Scale) -> Inputs:
    (x,) = _pictures(scale)
    _, _, states = scale.network(x, None, _ratio(x))
    return (x, *states)


def _matte(network: nn.Module, x: Tensor, *states: Tensor) -> object:
    fgr, pha, after = network(x, states, _ratio(x))
    return fgr, pha, *after


def _two_frames(scale: Scale) -> Inputs:
    first = 255 * scale.frames(scale.batch, 3)
    return first, first.roll((2, 3), (2, 3))


def _clip(scale: Scale) -> Inputs:
    return (2 * scale.frames(scale.batch, LOCAL + REFERENCES, 3) - 1,)


def _holes(scale: Scale, frames: int) -> Tensor:
    masks = torch.zeros(scale.batch, frames, 1, scale.height, scale.width, dtype=scale.dtype)
    masks[..., scale.height // 4 : scale.height // 2, scale.width // 4 : scale.width // 2] = 1
    return masks


def _flows(scale: Scale) -> tuple[Tensor, Tensor]:
    ahead = scale.frames(scale.batch, LOCAL - 1, 2)
    return ahead, -ahead


def _clip_with_holes(scale: Scale) -> Inputs:
    masks = _holes(scale, LOCAL + REFERENCES)
    return *_clip(scale), _flows(scale), masks, masks


def _flows_with_holes(scale: Scale) -> Inputs:
    return _flows(scale), _holes(scale, LOCAL)


def _after_some_frames(limits: object) -> Callable[[Scale], Inputs]:
    """The next frame of a video with one object, and what a tracker remembers that stored all frames before."""

    def inputs(scale: Scale) -> Inputs:
        masks = [Mask((1,), _holes(scale, 1)[0, 0].float()), *([None] * (REMEMBERED - 1))]
        memory = None
        for mask in masks:
            _, memory = scale.network.step(scale.frames(3), mask, memory, limits)  # type: ignore[operator]
        return scale.frames(3), memory

    return inputs


def _step(network: nn.Module, frame: Tensor, memory: object) -> object:
    return network.step(frame, None, memory)  # type: ignore[operator]


def _film(scale: Scale) -> Inputs:
    return (torch.randint(256, (scale.batch, WINDOW, scale.height, scale.width, 3), dtype=torch.uint8),)


def _action(name: str) -> Subject:
    clip = CLIPS[name]
    return Subject(
        lambda: X3D(DEEP if name == "l" else SHALLOW),
        (clip.side, clip.side),
        lambda scale: (scale.frames(scale.batch, 3, clip.frames),),
        frames=clip.frames,
    )


_TRACKED = Subject(XMem, (854, 480), _after_some_frames(Limits(every=1)), _step)
_DEAOT = Subject(DeAOT, (849, 481), _after_some_frames(DeAOTLimits(every=1)), _step)
_INPAINTED = Subject(STTN, (432, 240), _clip, lambda network, frames: network(frames, LOCAL), LOCAL)

SUBJECTS: Mapping[str, Subject] = {
    **{name: Subject(build, (640, 480)) for name, build in UPSCALE.items()},
    **{name: Subject(build, (1920, 1080), _with_states, _matte) for name, build in MATTE.items()},
    "u2net": Subject(U2Net, (320, 320)),
    "u2netp": Subject(lambda: U2Net("lite"), (320, 320)),
    "u2net-anime": Subject(lambda: U2Net(deeper=True), (640, 640)),
    "isnet-anime": Subject(ISNet, (1024, 1024)),
    "modnet-photographic": Subject(MODNet, (896, 512)),
    "birefnet-lite": Subject(lambda: BiRefNet("swin_t"), (1024, 1024)),
    "birefnet": Subject(lambda: BiRefNet("swin_l"), (1024, 1024)),
    "bisenet-faces": Subject(BiSeNet, (512, 512)),
    "ferplus": Subject(FERPlus, (64, 64), lambda scale: (255 * scale.frames(scale.batch, 1),)),
    "raft-things": Subject(RAFT, (640, 360), _two_frames),
    "raft-small": Subject(lambda: RAFT(SMALL), (640, 360), _two_frames),
    "gma-things": Subject(GMA, (640, 360), _two_frames),
    "lama-anime": Subject(LaMa, (512, 512), lambda scale: (scale.frames(scale.batch, 4),)),
    "sttn": _INPAINTED,
    "e2fgvi-hq": replace(_INPAINTED, build=E2FGVI),
    "e2fgvi": replace(_INPAINTED, build=lambda: E2FGVI(high_quality=False)),
    "propainter": Subject(
        ProPainter, (432, 240), _clip_with_holes, lambda network, *inputs: network(*inputs, LOCAL), LOCAL
    ),
    "propainter-flow": Subject(FlowCompletion, (432, 240), _flows_with_holes, frames=LOCAL),
    "xmem": _TRACKED,
    "cutie-base": replace(_TRACKED, build=Cutie),
    "cutie-small": replace(_TRACKED, build=lambda: Cutie("resnet18")),
    "deaot-t": _DEAOT,
    "deaot-s": replace(_DEAOT, build=lambda: DeAOT(layers=2)),
    "deaot-l": replace(_DEAOT, build=lambda: DeAOT(layers=3)),
    "deaot-l-r50": replace(_DEAOT, build=lambda: DeAOT("resnet50", 3)),
    "transnetv2": Subject(TransNetV2, (48, 27), _film, frames=STRIDE),
    **{f"x3d-{name}": _action(name) for name in ("xs", "s", "m", "l")},
}
