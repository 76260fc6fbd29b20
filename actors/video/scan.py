"""The one decode that tells the truth about an input: its times, its damage, its cuts' statistics."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.video.beat import Beat, nothing, paced
from actors.video.info import MediaInfo
from actors.video.limits import Limits
from actors.video.names import check_path
from actors.video.process import Child
from cluster.files import partial_path


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """What one decode from start to end found.

    Attributes:
        path: the input.
        source: the file to decode from: the input, or its remuxed copy (MPEG-TS).
        info: description of `source`, with everything that must be reported of the input.
        pts: int64 [n], times of all frames in display order, strictly increasing, in ticks of `info.time_base`.
        last_duration: ticks that the last frame is shown.
        damaged: frames that are corrupt or were lost; 0 unless damage was allowed.
        diff: float32 [n], mean absolute YCbCr difference to the frame before, of 255; 0 for the first.
        corr: float32 [n], correlation of the luma with the frame before; 1 for the first.
    """

    path: Path
    source: Path
    info: MediaInfo
    pts: NDArray[np.int64]
    last_duration: int
    damaged: int
    diff: NDArray[np.float32]
    corr: NDArray[np.float32]

    def __len__(self) -> int:
        return int(self.pts.shape[0])

    @property
    def seconds(self) -> float:
        """From the first frame's start to the last frame's end."""
        return float((int(self.pts[-1]) + self.last_duration - int(self.pts[0])) * self.info.time_base)

    def to_bytes(self) -> bytes:
        """An npz file, for storing beside a plan."""
        head: dict[str, Any] = {
            "copy": "" if self.source == self.path else self.source.name,
            "info": self.info.to_json(),
            "last_duration": self.last_duration,
            "damaged": self.damaged,
        }
        out = io.BytesIO()
        np.savez(out, head=np.array(json.dumps(head)), pts=self.pts, diff=self.diff, corr=self.corr)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, path: Path, workdir: Path) -> Scan:
        """The inverse of `to_bytes`, for the same content wherever it lies now.

        Args:
            path: the input.
            workdir: where its remuxed copy is, if it has one.
        """
        with np.load(io.BytesIO(data), allow_pickle=False) as npz:
            head = json.loads(str(npz["head"]))
            return cls(
                path=path,
                source=workdir / head["copy"] if head["copy"] else path,
                info=MediaInfo.from_json(head["info"]),
                pts=npz["pts"],
                last_duration=head["last_duration"],
                damaged=head["damaged"],
                diff=npz["diff"],
                corr=npz["corr"],
            )


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """A quick look: the header and the first frame, uint8 [H,W,3]."""

    info: MediaInfo
    first: NDArray[np.uint8]


def inspect(path: Path, limits: Limits) -> Inspection:
    """Read the header and the first frame in a child process; `MediaError` when there is none.

    An MPEG-TS file is described as it is; `scan` describes its remuxed copy.
    """
    with Child(check_path(path, limits).name, limits) as child:
        child.send({"op": "inspect", "path": str(Path.cwd() / path), "limits": limits.to_json()})
        answer, pixels = child.receive()
    info = MediaInfo.from_json(answer["info"])
    return Inspection(info, np.frombuffer(pixels, np.uint8).reshape(info.height, info.width, 3))


def scan(
    path: Path,
    limits: Limits,
    *,
    allow_damaged: bool = False,
    workdir: Path,
    progress: Callable[[int], None] | None = None,
    beat: Beat = nothing,
) -> Scan:
    """Decode once from start to end in a child process.

    Args:
        path: an untrusted file.
        limits: past any of them the file is refused.
        allow_damaged: count damaged frames instead of refusing the file.
        workdir: where a remuxed copy of an MPEG-TS file is kept.
        progress: called with the number of frames decoded so far.
        beat: called about once a second or more often, also while nothing is decoded. What it, or `progress`, raises
            goes on to the caller, when the child is gone and no partial file is left.

    Raises:
        MediaError: with the file's name, what is wrong with it, and what can be done.
    """
    # Named here, because this process outlives the child: what that wrote is removed however it ended.
    partial = partial_path(Path.cwd() / workdir / "remuxed.mp4")
    request = {
        "op": "scan",
        "path": str(check_path(path, limits)),
        "limits": limits.to_json(),
        "allow_damaged": allow_damaged,
        "workdir": str(partial.parent),
        "partial": str(partial),
    }
    try:
        with Child(path.name, limits, beat=paced(beat)) as child:
            child.send(request)
            answer, blob = child.receive()
            while answer["op"] == "progress":
                if progress is not None:
                    progress(answer["frames"])
                answer, blob = child.receive()
    finally:
        partial.unlink(missing_ok=True)
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        return Scan(
            path=path,
            source=path if answer["source"] == request["path"] else Path(answer["source"]),
            info=MediaInfo.from_json(answer["info"]),
            pts=arrays["pts"],
            last_duration=answer["last_duration"],
            damaged=answer["damaged"],
            diff=arrays["diff"],
            corr=arrays["corr"],
        )
