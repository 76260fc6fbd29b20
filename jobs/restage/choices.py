"""Command-line options that choose how a video is restaged, here or by a server, in the same words."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.errors import UsageError
from jobs.options import FINER

Matte = Annotated[
    str | None, typer.Option(metavar="MODEL", help="auto, none, given, chroma, selfie, rvm-mobilenetv3, rvm-resnet50.")
]
Upscale = Annotated[str | None, typer.Option(metavar="MODEL", help="lanczos or a Real-ESRGAN model (`troupe models`).")]
TargetSize = Annotated[str | None, typer.Option(metavar="SIZE", help="720p, 1080p, 1440p, 4k (the short side) or WxH.")]
Scale = Annotated[float | None, typer.Option(metavar="FACTOR", help="A factor instead of --target.", min=0.01)]
Denoise = Annotated[
    float | None,
    typer.Option(metavar="X", rich_help_panel=FINER, help="Strength 0..1, realesr-general-x4v3 only.", min=0, max=1),
]
MaxInput = Annotated[
    int | None,
    typer.Option(metavar="PIXELS", rich_help_panel=FINER, help="Reduce to this short side before upscaling.", min=16),
]
LongSide = Annotated[
    int | None, typer.Option(metavar="PIXELS", rich_help_panel=FINER, help="Long side that RVM looks at.", min=64)
]


def refuse_both(target: str | None, scale: float | None) -> None:
    """Raises UsageError where both say how large the result is to be."""
    if target is not None and scale is not None:
        raise UsageError("--target and --scale", "contradict each other", remedy="give one of them")
