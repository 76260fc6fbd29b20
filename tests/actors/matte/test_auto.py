"""Whether the border is one flat green or blue."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from actors.matte import border_screen
from tests.actors.matte.green import BLUE, GREEN, studio


@pytest.mark.parametrize(("colour", "name"), [(GREEN, "green"), (BLUE, "blue"), ((0, 177, 64), "green")])
def test_unevenly_lit_studios_are_recognised(colour: tuple[int, int, int], name: str) -> None:
    rgb, _ = studio(2, screen=colour)  # its figure's legs leave the frame at the bottom
    assert {border_screen(frame) for frame in rgb} == {name}


def test_portrait_and_large_frames_are_recognised() -> None:
    assert border_screen(np.full((1920, 1080, 3), GREEN, np.uint8)) == "green"
    assert border_screen(studio(1, 270, 480)[0][0]) == "green"


def test_a_figure_at_the_bottom_and_an_arm_at_the_side_do_not_hide_the_screen() -> None:
    frame = studio(1)[0][0].copy()
    frame[400:] = (90, 70, 60)
    frame[200:240, :300] = (215, 170, 140)
    assert border_screen(frame) == "green"


def textured(colour: tuple[int, int, int], deviation: float) -> NDArray[np.uint8]:
    rng = np.random.default_rng(2)
    grain = cv2.resize(rng.normal(0, deviation, (240, 320)).astype(np.float32), (640, 480))
    return np.clip(np.array(colour) + grain[..., None], 0, 255).astype(np.uint8)


def gradient() -> NDArray[np.uint8]:
    x = np.linspace(0, 1, 640)[None, :, None]
    return np.broadcast_to(x * (250, 240, 60) + (1 - x) * (20, 160, 30), (480, 640, 3)).astype(np.uint8)


def sky_over_ground() -> NDArray[np.uint8]:
    frame = np.full((480, 640, 3), (90, 150, 225), np.uint8)
    frame[260:] = (110, 95, 80)
    return frame


def green_figure_before_grey() -> NDArray[np.uint8]:
    frame = np.full((480, 640, 3), 128, np.uint8)
    frame[60:, 80:560] = GREEN
    return frame


@pytest.mark.parametrize(
    "frame",
    [
        textured((60, 140, 40), 45),
        gradient(),
        sky_over_ground(),
        np.full((480, 640, 3), (120, 180, 235), np.uint8),
        green_figure_before_grey(),
        np.full((480, 640, 3), 200, np.uint8),
        np.zeros((480, 640, 3), np.uint8),
    ],
    ids=["lawn", "gradient", "sky over ground", "clear sky", "green figure", "grey wall", "black"],
)
def test_other_pictures_are_not_screens(frame: NDArray[np.uint8]) -> None:
    assert border_screen(frame) is None


@pytest.mark.parametrize("name", ["sintel_10s.mp4", "person_gesture.mkv", "person_walking.mp4"])
def test_real_footage_is_not_a_screen(shared: Path, name: str) -> None:
    with av.open(str(shared / "clips" / name)) as source:  # noqa: TID251 - a known good clip
        for index, frame in enumerate(source.decode(video=0)):
            if index % 40 == 0:
                assert border_screen(frame.to_ndarray(format="rgb24")) is None, index
            if index > 240:
                break
