"""Contact sheets: the source beside the result at a few times, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from actors.video.sample import Sampler
from cluster.errors import JobError, UsageError
from cluster.files import written_whole

TIMES = 8

#: Longest side of a picture on the sheet, in pixels.
LONG_SIDE = 360

_LABEL = 24
_GAP = 8
_FORMATS = {".png": [], ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 90], ".jpeg": [cv2.IMWRITE_JPEG_QUALITY, 90]}


@dataclass(frozen=True, slots=True, eq=False)
class Pick:
    """One time on the sheet: the frame's index in source and result, seconds, and the source's frame, uint8 [H,W,3]."""

    index: int
    seconds: float
    rgb: NDArray[np.uint8]


def pick_indices(frames: int, times: int = TIMES) -> list[int]:
    """Which frames a sheet shows: the middles of equal parts, fewer when there are fewer frames."""
    times = min(times, frames)
    return [(2 * i + 1) * frames // (2 * times) for i in range(times)]


def write_sheet(target: Path, result: Path, picks: Sequence[Pick]) -> None:
    """Write a PNG or JPEG, by its name, of all picks: source on the left, result on the right, the time below.

    Args:
        target: the picture to write.
        result: a final file that this project wrote; decord samples it.
        picks: the source's frames, decoded by the caller.

    Raises:
        UsageError: the target is neither PNG nor JPEG.
        JobError: the result has fewer frames than a pick asks for.
    """
    if target.suffix.lower() not in _FORMATS:
        raise UsageError(target.name, "is neither a PNG nor a JPEG file", remedy="name it .png or .jpg")
    if not picks:
        raise UsageError(target.name, "a contact sheet needs at least one time")
    frames = Sampler(result)
    tiles = [_tile(pick, frames[pick.index]) for pick in picks]
    sheet = _grid(tiles)
    done, data = cv2.imencode(target.suffix.lower(), sheet[:, :, ::-1], _FORMATS[target.suffix.lower()])
    if not done:
        raise JobError(target.name, "the picture cannot be encoded")
    with written_whole(target) as partial:
        partial.write_bytes(data.tobytes())


def _tile(pick: Pick, result: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Source and result side by side in cells of the result's shape, with a line of text below."""
    height, width = result.shape[:2]
    scale = LONG_SIDE / max(height, width)
    cell = max(1, round(width * scale)), max(1, round(height * scale))
    pair = np.hstack([_fit(pick.rgb, cell), _fit(result, cell)])
    label = np.full((_LABEL, pair.shape[1], 3), 24, np.uint8)
    text = f"{pick.seconds:.3f} s  #{pick.index}"
    cv2.putText(label, text, (6, _LABEL - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (230, 230, 230), 1, cv2.LINE_AA)
    return np.vstack([pair, label])


def _fit(rgb: NDArray[np.uint8], cell: tuple[int, int]) -> NDArray[np.uint8]:
    """The whole picture in a cell (width, height), with bars where the shapes differ."""
    height, width = rgb.shape[:2]
    scale = min(cell[0] / width, cell[1] / height)
    size = min(cell[0], max(1, round(width * scale))), min(cell[1], max(1, round(height * scale)))
    out = np.zeros((cell[1], cell[0], 3), np.uint8)
    left, top = (cell[0] - size[0]) // 2, (cell[1] - size[1]) // 2
    out[top : top + size[1], left : left + size[0]] = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return out


def _grid(tiles: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Tiles of one size in two columns when they are wide, in four when they are tall."""
    height, width = tiles[0].shape[:2]
    columns = min(len(tiles), 2 if width > 2 * (height - _LABEL) else 4)
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 60, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = _GAP + i // columns * (height + _GAP), _GAP + i % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = tile
    return sheet
