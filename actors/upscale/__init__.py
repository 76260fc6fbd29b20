"""Upscaling: the Real-ESRGAN family on frames. (`lanczos` is no model: the output conversion does it.)"""

from __future__ import annotations

from actors.model import Card, Model, Setup


def _card(name: str, weights: tuple[str, ...], scale: int, work: float, summary: str) -> Card:
    def load(setup: Setup) -> Model:
        from actors.upscale import upscaler  # listing the cards must not import torch

        one = len(weights) == 1
        return upscaler.load_upscaler(setup, scale) if one else upscaler.load_denoising_upscaler(setup, scale)

    return Card(name, "upscale", weights, resident=True, load=load, scale=scale, work=work, summary=summary)


CARDS: tuple[Card, ...] = (
    _card(
        "realesr-animevideov3",
        ("realesr-animevideov3",),
        4,
        1.24,
        "compact and the fastest; made for animation, good on clean generated clips",
    ),
    _card(
        "realesr-general-x4v3",
        ("realesr-general-x4v3", "realesr-general-wdn-x4v3"),
        4,
        2.42,
        "compact, for live action; option denoise 0..1 (0.5; 1 is the strongest); twice the work of animevideov3",
    ),
    _card("realesrgan-x4plus", ("realesrgan-x4plus",), 4, 35.9, "the largest: 29 times the work of animevideov3"),
    _card("realesrgan-x2plus", ("realesrgan-x2plus",), 2, 8.96, "large: 7 times the work of animevideov3"),
    _card(
        "realesrgan-x4plus-anime-6b",
        ("realesrgan-x4plus-anime-6b",),
        4,
        11.4,
        "for drawings: 9 times the work of animevideov3",
    ),
)
