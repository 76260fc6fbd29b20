"""The chroma key finds true alpha through noise, motion blur, hair and 4:2:0 compression."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from actors.frames import FrameBatch
from actors.matte.chroma import Chroma
from cluster.errors import UsageError
from tests.actors.matte.green import BLUE, GREEN, studio


def batch(rgb: NDArray[np.uint8]) -> FrameBatch:
    rgb.flags.writeable = False
    return FrameBatch(rgb, np.arange(len(rgb), dtype=np.int64), np.zeros(len(rgb), np.bool_))


@pytest.fixture(scope="module", params=[GREEN, BLUE], ids=["green", "blue"])
def clip(request: pytest.FixtureRequest) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return studio(6, screen=request.param)


def test_alpha_is_within_two_levels_of_the_truth(clip: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    rgb, truth = clip
    done, carry = Chroma()(batch(rgb), {}, {})
    assert done.alpha is not None and not carry
    error = np.abs(done.alpha.astype(int) - truth)
    assert error.mean() <= 2
    assert error[truth == 0].mean() <= 0.5, "noise in the screen"
    assert error[truth == 255].mean() <= 2, "holes in the figure"


def test_no_screen_colour_is_left_in_the_foreground(clip: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    done, _ = Chroma()(batch(clip[0]), {}, {})
    primary = 1 if clip[0][0, 0, 0, 1] > clip[0][0, 0, 0, 2] else 2
    others = np.delete(done.rgb, primary, axis=-1).max(-1)
    assert (done.rgb[..., primary].astype(int) - others <= 0).all()


def test_chunking_and_neighbours_make_no_difference(clip: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    model = Chroma()
    whole, _ = model(batch(clip[0]), {}, {})
    assert whole.alpha is not None
    for index, frame in enumerate(clip[0]):
        single, _ = model(batch(frame[None].copy()), {}, {})
        np.testing.assert_array_equal(single.rgb[0], whole.rgb[index])
        np.testing.assert_array_equal(single.alpha, whole.alpha[index : index + 1])


def test_a_frame_without_screen_is_all_figure() -> None:
    grey = np.full((1, 48, 64, 3), 90, np.uint8)
    done, _ = Chroma()(batch(grey), {}, {})
    assert done.alpha is not None and (done.alpha == 255).all()
    np.testing.assert_array_equal(done.rgb, grey)


def test_a_bare_screen_is_all_transparent() -> None:
    done, _ = Chroma()(batch(np.full((1, 48, 64, 3), GREEN, np.uint8)), {}, {})
    assert done.alpha is not None and (done.alpha == 0).all()


def test_a_named_screen_wins_over_the_larger_one() -> None:
    frame = np.full((1, 64, 96, 3), BLUE, np.uint8)
    frame[:, :, :32] = GREEN
    auto, _ = Chroma()(batch(frame.copy()), {}, {})
    named, _ = Chroma()(batch(frame.copy()), {}, {"screen": "green"})
    assert auto.alpha is not None and named.alpha is not None
    assert auto.alpha[0, 32, 4] == 255 and auto.alpha[0, 32, 90] == 0
    assert named.alpha[0, 32, 4] == 0 and named.alpha[0, 32, 90] == 255


@pytest.mark.parametrize("size", [(17, 23), (16, 16), (61, 45)])
def test_any_size_is_keyed(size: tuple[int, int]) -> None:
    frame = np.full((1, size[1], size[0], 3), GREEN, np.uint8)
    cv2.circle(frame[0], (size[0] // 2, size[1] // 2), 4, (200, 150, 130), -1)
    done, _ = Chroma()(batch(frame), {}, {})
    assert done.alpha is not None and done.alpha.shape == (1, size[1], size[0])
    assert done.alpha[0, size[1] // 2, size[0] // 2] == 255 and done.alpha[0, 0, 0] == 0


def test_unknown_screen_is_refused() -> None:
    with pytest.raises(UsageError, match="green, blue or auto"):
        Chroma()(batch(np.zeros((1, 16, 16, 3), np.uint8)), {}, {"screen": "red"})
