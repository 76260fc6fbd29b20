"""A mask that came with the clip becomes its alpha."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.frames import FrameBatch
from actors.matte.given import Given
from cluster.errors import MediaError

OLD, OWN = (230, 230, 230), (150, 40, 60)


def batch(mask: NDArray[np.generic] | None) -> tuple[FrameBatch, NDArray[np.uint8]]:
    """A disc of one colour with a soft edge on a light wall, and its true alpha."""
    y, x = np.mgrid[0:96, 0:128]
    alpha = np.clip((30 - np.hypot(x - 64, y - 48)) / 6 + 0.5, 0, 1)[..., None]
    rgb = np.rint(alpha * OWN + (1 - alpha) * OLD).astype(np.uint8)
    frames = np.stack([rgb, rgb])
    frames.flags.writeable = False
    planes = {"depth": np.zeros(2)} if mask is None else {"depth": np.zeros(2), "mask": mask}
    truth = np.rint(alpha[..., 0] * 255).astype(np.uint8)
    return FrameBatch(frames, np.arange(2, dtype=np.int64), np.zeros(2, np.bool_), planes=planes), truth


def test_the_mask_is_the_alpha_and_is_used_up() -> None:
    source, truth = batch(None)
    source, _ = batch(np.stack([truth, truth]))
    done, carry = Given()(source, {}, {"decontaminate": False})
    assert done.alpha is not None and not carry
    np.testing.assert_array_equal(done.alpha, np.stack([truth, truth]))
    np.testing.assert_array_equal(done.rgb, source.rgb)
    assert set(done.planes) == {"depth"}


@pytest.mark.parametrize("factor", [2, 0.5])
def test_a_mask_of_another_size_is_fitted(factor: float) -> None:
    h, w = int(96 * factor), int(128 * factor)
    mask = np.zeros((2, h, w), np.uint8)
    mask[:, :, w // 2 :] = 255
    done, _ = Given()(batch(mask)[0], {}, {})
    assert done.alpha is not None and done.alpha.shape == (2, 96, 128)
    assert (done.alpha[:, :, :62] == 0).all() and (done.alpha[:, :, 66:] == 255).all()


def test_soft_edges_lose_the_old_background() -> None:
    _, truth = batch(None)
    source, _ = batch(np.stack([truth, truth]))
    done, _ = Given()(source, {}, {})
    soft = (truth > 20) & (truth < 235)
    assert np.abs(source.rgb[0][soft].astype(int) - OWN).mean() > 30
    assert np.abs(done.rgb[0][soft].astype(int) - OWN).mean() < 6
    opaque = truth == 255
    np.testing.assert_array_equal(done.rgb[0][opaque], source.rgb[0][opaque])


def test_a_missing_or_mismatched_mask_is_an_error() -> None:
    with pytest.raises(MediaError, match="without one"):
        Given()(batch(None)[0], {}, {})
    with pytest.raises(MediaError, match="not uint8"):
        Given()(batch(np.zeros((3, 96, 128), np.uint8))[0], {}, {})
    with pytest.raises(MediaError, match="not uint8"):
        Given()(batch(np.zeros((2, 96, 128), np.float32))[0], {}, {})
