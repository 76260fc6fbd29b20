"""Single frames of files that this project wrote, by decord: quick there, silently wrong on other files."""

from __future__ import annotations

import bisect
from pathlib import Path
from typing import Any

import cv2  # noqa: F401 - loaded before decord, see `Sampler`
import numpy as np
from numpy.typing import NDArray

from cluster.errors import JobError

#: A keyframe followed by another within so many frames cannot be sought: decord seeks by decode times, and that of the
#: later keyframe is already before the earlier one's presentation time.
REORDERED = 4


class Sampler:
    """Random access to the frames of one of our own files.

    decord loads its libraries with global symbols; an OpenCV loaded after it binds to decord's old zlib and can read
    no PNG any more. So OpenCV is loaded by this module, and decord as late as this.

    Between reads decord decodes ahead without bound: read what is needed at once, then drop the sampler.

    Raises:
        JobError: (all methods) the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        import decord

        self._path = path
        self._open = decord.VideoReader
        self._error: type[Exception] = decord.DECORDError
        self._reader = self._reopened()
        self._keys = [int(k) for k in self._reader.get_key_indices()]

    def _reopened(self) -> Any:
        try:
            return self._open(str(self._path), num_threads=1)
        except (self._error, RuntimeError) as error:
            raise self._unreadable(error) from error

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """One frame as RGB, uint8 [H,W,3], by the library's default conversion."""
        if not 0 <= index < len(self):
            raise JobError(self._path.name, f"has {len(self)} frames", place=f"frame {index}")
        try:
            # Frame after frame is always read rightly; so a keyframe that cannot be sought is walked to.
            for before in range(self._safe_start(index), index):
                self._reader[before]
            return np.asarray(self._reader[index].asnumpy(), np.uint8)
        except self._error as error:
            raise self._unreadable(error) from error

    def _safe_start(self, index: int) -> int:
        """The frame to walk from to `index`: itself, where its keyframe can be sought."""
        at = bisect.bisect_right(self._keys, index)
        following = [*self._keys[1:], len(self)]
        while at > 0 and following[at - 1] - self._keys[at - 1] <= REORDERED:
            at -= 1
        if at == 0:
            self._reader = self._reopened()
            return 0
        found_own_key = at == bisect.bisect_right(self._keys, index)
        return index if found_own_key else self._keys[at - 1]

    def _unreadable(self, error: Exception) -> JobError:
        last = str(error).strip().splitlines()[-1:]
        return JobError(self._path.name, f"decord cannot read it: {' '.join(last)}", remedy="rerun with --force")
