"""Deformable convolution is torchvision's, tap by tap."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from actors.networks import deform
from actors.networks.deform import deform_conv2d
from tests.actors.networks import goldens


@pytest.mark.parametrize("band", [2**26, 300], ids=["at once", "in bands of rows"])
def test_outputs_equal_the_slow_loop(shared: Path, monkeypatch: pytest.MonkeyPatch, band: int) -> None:
    monkeypatch.setattr(deform, "_BAND", band)
    stored = goldens.arrays(shared, "deform_conv2d")
    outputs = {}
    for case in "012":
        x, offset, weight, bias, mask, params = (
            stored[f"{case}_{name}"] for name in ("x", "offset", "weight", "bias", "mask", "params")
        )
        stride, padding, dilation = params.tolist()
        outputs[f"{case}_y"] = deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)
        plain = deform_conv2d(x, offset, weight, None, stride, padding, dilation)
        torch.testing.assert_close(plain, stored[f"{case}_y_nomask_nobias"], rtol=0, atol=1e-5)
    goldens.check(shared, "deform_conv2d", outputs)


def test_without_offsets_it_is_a_convolution() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 12, 13, 10, generator=generator)
    weight = torch.randn(8, 6, 3, 2, generator=generator)
    expected = F.conv2d(x, weight, None, (2, 1), (1, 2), (2, 3), groups=2)
    offset = x.new_zeros(2, 2 * 3 * 6, *expected.shape[2:])
    ours = deform_conv2d(x, offset, weight, None, (2, 1), (1, 2), (2, 3))
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


def test_an_offset_of_whole_pixels_shifts_the_picture() -> None:
    x = torch.rand(1, 4, 9, 8)
    weight = torch.rand(3, 4, 3, 3)
    offset = torch.zeros(1, 18, 9, 8)
    offset[:, 0::2] = 2  # down
    offset[:, 1::2] = -1  # left
    shifted = F.pad(x, (1, 0, 0, 2))[:, :, 2:, :8]
    inside = (slice(None), slice(None), slice(1, -1), slice(2, -1))  # where no tap leaves the picture
    torch.testing.assert_close(
        deform_conv2d(x, offset, weight, padding=1)[inside], F.conv2d(shifted, weight, padding=1)[inside]
    )


def test_half_precision_keeps_positions_in_float32() -> None:
    x, weight = torch.rand(1, 2, 4, 300).half(), torch.rand(2, 2, 3, 3).half()
    offset = torch.full((1, 18, 4, 300), 0.3).half()
    ours = deform_conv2d(x, offset, weight, padding=1)
    exact = deform_conv2d(x.float(), offset.float(), weight.float(), padding=1)
    assert ours.dtype == torch.float16
    torch.testing.assert_close(ours, exact.half())


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    x, weight = torch.rand(1, 4, 6, 6), torch.rand(2, 4, 3, 3)
    offset = torch.zeros(1, 18, 6, 6)
    with pytest.raises(ValueError, match="do not fit"):
        deform_conv2d(x, offset[:, 1:], weight, padding=1)
    with pytest.raises(ValueError, match="offset must be"):
        deform_conv2d(x, offset, weight)
    with pytest.raises(ValueError, match="mask must be"):
        deform_conv2d(x, offset, weight, padding=1, mask=offset)


def test_the_memory_format_makes_no_difference() -> None:
    x, weight = torch.rand(2, 8, 6, 7), torch.rand(4, 4, 3, 3)
    offset, mask = torch.randn(2, 2 * 9 * 4, 6, 7), torch.rand(2, 9 * 4, 6, 7)
    plain = deform_conv2d(x, offset, weight, padding=1, mask=mask)
    x, offset, weight, mask = (t.contiguous(memory_format=torch.channels_last) for t in (x, offset, weight, mask))
    torch.testing.assert_close(deform_conv2d(x, offset, weight, padding=1, mask=mask), plain)
