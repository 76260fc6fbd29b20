"""A green- or blue-screen clip with known alpha: uneven light, noise, motion blur, hair, x264 crf 23 in 4:2:0."""

from __future__ import annotations

import io

import av
import cv2
import numpy as np
from numpy.typing import NDArray

GREEN = (40, 190, 70)
BLUE = (40, 70, 190)
_FINE = 4  # drawn at four times the size, so that alpha is exact to 1/16 of a pixel's area
_SHUTTER = 5  # drawn positions that one exposure averages


def studio(
    frames: int, width: int = 640, height: int = 480, screen: tuple[int, int, int] = GREEN, noise: float = 4.0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """RGB [T,H,W,3] as a decoder returns it after H.264, and the true alpha [T,H,W]."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = 1.08 - 0.3 * x / width - 0.2 * ((y / height - 0.4) ** 2)
    backdrop = np.array(screen, np.float32) * light[..., None]
    rgb, alphas = [], []
    for index in range(frames):
        fgr, alpha = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
        for step in range(_SHUTTER):
            colour, cover = _figure(index + 0.6 * step / _SHUTTER, width, height)
            fgr += colour * cover[..., None] / _SHUTTER
            alpha += cover / _SHUTTER
        frame = fgr + backdrop * (1 - alpha[..., None])
        frame += rng.normal(0, noise, frame.shape)
        rgb.append(np.rint(np.clip(frame, 0, 255)).astype(np.uint8))
        alphas.append(np.rint(alpha * 255).astype(np.uint8))
    return _through_h264(rgb), np.stack(alphas)


def _figure(time: float, width: int, height: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colours [H,W,3] and coverage [H,W] of a dancer whose arm is quick; sharp, without blur."""
    w, h = width * _FINE, height * _FINE
    picture, mask = np.zeros((h, w, 3), np.uint8), np.zeros((h, w), np.uint8)

    def shape(colour: tuple[int, int, int], *lines: tuple[tuple[float, float], tuple[float, float], float]) -> None:
        for (x0, y0), (x1, y1), thick in lines:
            ends = (int(x0 * w), int(y0 * h)), (int(x1 * w), int(y1 * h))
            for target, value in ((picture, colour), (mask, 255)):
                cv2.line(target, *ends, value, max(round(thick * h), 1))

    cx = 0.5 + 0.12 * np.sin(time * 0.3)
    arm = 0.25 * np.cos(time * 1.1), 0.2 * np.sin(time * 1.1)
    hair = [
        ((cx, 0.2), (cx + 0.1 * np.sin(k * 0.37 + 0.1 * time), 0.36 + 0.02 * np.sin(k * 1.7)), 0.003)
        for k in range(-12, 13)
    ]
    shape((60, 40, 30), *hair)
    shape((110, 80, 60), ((cx - 0.05, 0.6), (cx - 0.07, 1.1), 0.09), ((cx + 0.05, 0.6), (cx + 0.07, 1.1), 0.09))
    shape((190, 60, 70), ((cx, 0.42), (cx, 0.6), 0.22))
    shape((215, 170, 140), ((cx, 0.42), (cx + arm[0], 0.42 + arm[1]), 0.05), ((cx, 0.24), (cx, 0.26), 0.13))
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    cover = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    # The area average holds colour times coverage; the picture outside the figure is black.
    return small / np.maximum(cover, 1e-3)[..., None], cover


def _through_h264(frames: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    file = io.BytesIO()
    height, width = frames[0].shape[:2]
    with av.open(file, "w", format="mp4") as out:  # noqa: TID251 - a test clip
        stream = out.add_stream("libx264", rate=30, options={"crf": "23", "preset": "veryfast", "threads": "1"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as source:  # noqa: TID251 - the same test clip
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])
