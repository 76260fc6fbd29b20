"""Matting models: who is in front, in which colours, how opaque. Cards import a model's libraries when it is loaded."""

from __future__ import annotations

from actors.matte.auto import border_screen
from actors.model import Card, Model, Setup

__all__ = ["CARDS", "border_screen"]


def _load_rvm_mobilenetv3(setup: Setup) -> Model:
    from actors.matte.recurrent import load_recurrent

    return load_recurrent(setup, "mobilenetv3")


def _load_rvm_resnet50(setup: Setup) -> Model:
    from actors.matte.recurrent import load_recurrent

    return load_recurrent(setup, "resnet50")


def _load_selfie(setup: Setup) -> Model:
    from actors.matte.selfie import load_selfie

    return load_selfie(setup)


def _load_chroma(setup: Setup) -> Model:  # noqa: ARG001 - nothing to set up
    from actors.matte.chroma import Chroma

    return Chroma()


def _load_given(setup: Setup) -> Model:  # noqa: ARG001 - nothing to set up
    from actors.matte.given import Given

    return Given()


CARDS: tuple[Card, ...] = (
    Card(
        name="rvm-mobilenetv3",
        family="matte",
        weights=("rvm-mobilenetv3",),
        resident=True,
        stateful=True,
        load=_load_rvm_mobilenetv3,
        summary="people before any background, recurrent (Robust Video Matting, small)",
    ),
    Card(
        name="rvm-resnet50",
        family="matte",
        weights=("rvm-resnet50",),
        resident=True,
        stateful=True,
        load=_load_rvm_resnet50,
        summary="people before any background, recurrent (Robust Video Matting, large)",
    ),
    Card(
        name="selfie",
        family="matte",
        weights=("selfie-segmentation",),
        resident=True,
        load=_load_selfie,
        summary="people, frame by frame, light enough for a CPU (MediaPipe selfie segmentation)",
    ),
    Card(
        name="chroma",
        family="matte",
        weights=(),
        resident=False,
        load=_load_chroma,
        summary="anything before a green or blue screen; no weights",
    ),
    Card(
        name="given",
        family="matte",
        weights=(),
        resident=False,
        load=_load_given,
        summary="the mask video that came with the clip; no weights",
    ),
)
