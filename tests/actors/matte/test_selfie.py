"""Selfie segmentation cuts a real person out cleanly, frame by frame."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from actors.frames import FrameBatch
from actors.matte import CARDS
from actors.model import Model, Setup
from cluster.errors import WeightsError

CARD = next(card for card in CARDS if card.name == "selfie")


@pytest.fixture(scope="module")
def model(shared: Path) -> Model:
    return CARD.load(Setup(weights=(shared / "weights" / "selfie_segmentation.onnx",)))


@pytest.fixture(scope="module")
def frames(shared: Path) -> NDArray[np.uint8]:
    """Frames 10, 45 and 80 of the gesture clip at 960x720."""
    with av.open(str(shared / "clips" / "person_gesture.mkv")) as source:  # noqa: TID251 - a known good clip
        chosen = [f.to_ndarray(format="rgb24") for i, f in enumerate(source.decode(video=0)) if i in (10, 45, 80)]
    return np.stack([cv2.resize(frame, (960, 720), interpolation=cv2.INTER_LANCZOS4) for frame in chosen])


def batch(rgb: NDArray[np.uint8]) -> FrameBatch:
    return FrameBatch(rgb, np.arange(len(rgb), dtype=np.int64), np.zeros(len(rgb), np.bool_))


def test_the_person_is_opaque_and_the_room_transparent(model: Model, frames: NDArray[np.uint8]) -> None:
    done, carry = model(batch(frames), {}, {})
    assert done.alpha is not None and not carry
    for alpha in done.alpha:
        assert (alpha[340:700, 400:540] == 255).all(), "torso"
        assert (alpha[716:, 440:480] == 255).all(), "the person is cut off by the frame, not by the matte"
        assert (alpha[:100] == 0).all() and (alpha[:, :180] == 0).all() and (alpha[:, 720:] == 0).all(), "room"
        assert 0.002 < ((alpha > 0) & (alpha < 255)).mean() < 0.05, "soft only along the edge"


def test_no_halo_of_the_white_wall(model: Model, frames: NDArray[np.uint8]) -> None:
    """Hair (luma below 80) stands before a wall (above 150): its soft edge must be dark after un-mixing."""
    done, _ = model(batch(frames), {}, {})
    assert done.alpha is not None
    hair = np.s_[:, 180:300, 350:420]
    soft = (done.alpha[hair] > 60) & (done.alpha[hair] < 200)
    assert soft.sum() > 100
    assert frames[hair].mean(-1)[soft].mean() - done.rgb[hair].mean(-1)[soft].mean() > 15


def test_frames_do_not_know_each_other(model: Model, frames: NDArray[np.uint8]) -> None:
    whole, _ = model(batch(frames), {}, {})
    assert whole.alpha is not None
    for index in range(len(frames)):
        single, _ = model(batch(frames[index : index + 1]), {}, {})
        np.testing.assert_array_equal(single.rgb[0], whole.rgb[index])
        np.testing.assert_array_equal(single.alpha, whole.alpha[index : index + 1])


def test_empty_rooms_and_odd_sizes_pass(model: Model) -> None:
    done, _ = model(batch(np.full((1, 97, 31, 3), 120, np.uint8)), {}, {})
    assert done.alpha is not None and done.alpha.shape == (1, 97, 31)


def test_what_is_not_the_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "selfie.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(WeightsError, match="readable ONNX"):
        CARD.load(Setup(weights=(path,)))
