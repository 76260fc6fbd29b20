"""Upscaling: the Real-ESRGAN family on frames. (`lanczos` is no model: the output conversion does it.)"""

from __future__ import annotations

from actors.model import Card, Model, Setup


def _load(setup: Setup) -> Model:
    from actors.upscale.upscaler import load_upscaler  # listing the cards must not import torch

    return load_upscaler(setup)


def _load_denoising(setup: Setup) -> Model:
    from actors.upscale.upscaler import load_denoising_upscaler

    return load_denoising_upscaler(setup)


CARDS: tuple[Card, ...] = (
    Card(
        name="realesr-animevideov3",
        family="upscale",
        weights=("realesr-animevideov3",),
        resident=True,
        load=_load,
        scale=4,
        summary="x4, compact and the fastest; made for animation, good on clean generated clips",
    ),
    Card(
        name="realesr-general-x4v3",
        family="upscale",
        weights=("realesr-general-x4v3", "realesr-general-wdn-x4v3"),
        resident=True,
        load=_load_denoising,
        scale=4,
        summary="x4, compact, for live action; option denoise 0..1 (0.5; 1 is the strongest)",
    ),
    Card(
        name="realesrgan-x4plus",
        family="upscale",
        weights=("realesrgan-x4plus",),
        resident=True,
        load=_load,
        scale=4,
        summary="x4, the largest: 29 times the work of realesr-animevideov3",
    ),
    Card(
        name="realesrgan-x2plus",
        family="upscale",
        weights=("realesrgan-x2plus",),
        resident=True,
        load=_load,
        scale=2,
        summary="x2, large: 7 times the work of realesr-animevideov3",
    ),
    Card(
        name="realesrgan-x4plus-anime-6b",
        family="upscale",
        weights=("realesrgan-x4plus-anime-6b",),
        resident=True,
        load=_load,
        scale=4,
        summary="x4, for drawings: 9 times the work of realesr-animevideov3",
    ),
)
