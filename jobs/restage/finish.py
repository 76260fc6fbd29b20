"""Restaging's last step: the cut-out person before the background, or the frames alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from actors.frames import FrameBatch
from actors.video.background import open_background, parse_colour
from actors.video.compose import Composer as Overlaying
from actors.video.limits import Limits
from actors.video.scan import Scan
from jobs.plan import stored_scan


@dataclass(frozen=True, slots=True)
class Restaging:
    """Sets frames of a chain before a background.

    Attributes:
        size: width and height of the result.
        background: a colour, or the path of an image or a video; None when nothing is cut out.
        background_hash: sha256 of that file, or the colour itself.
        background_scan: stored scan of a background video, made once for all its clips.
        limits: what the background may be at most.
    """

    size: tuple[int, int]
    background: str | None
    background_hash: str
    background_scan: Path | None
    limits: Limits

    @property
    def files(self) -> tuple[Path, ...]:
        """The background, unless it is a colour."""
        if self.background is None or parse_colour(self.background) is not None:
            return ()
        return (Path(self.background),)

    def identity(self) -> Mapping[str, Any]:
        """What changes the pictures: the size and the background's bytes."""
        return {"size": self.size, "background": self.background_hash}

    def open(self, scan: Scan) -> _Restager:
        """A composer for one video."""
        return _Restager(self, scan)


class _Restager:
    def __init__(self, finish: Restaging, scan: Scan) -> None:
        width, height = finish.size
        self._background = None
        if finish.background is not None:
            stored = finish.background_scan
            known = stored_scan(stored, Path(finish.background)) if stored else None
            self._background = open_background(
                finish.background, width, height, finish.limits, workdir=Path(), scanned=known
            )
        self._overlaying = Overlaying(width, height, self._background)
        self._start = int(scan.pts[0])
        self._tick = float(scan.info.time_base)

    def compose(self, batch: FrameBatch) -> Iterator[av.VideoFrame]:
        """The batch's pictures; a moving background is sampled at each frame's time since the video's start."""
        seconds = ((batch.pts - self._start) * self._tick).tolist()
        return self._overlaying.compose(batch, seconds)

    def close(self) -> None:
        """Ends the background's decoder."""
        if self._background is not None:
            self._background.close()
