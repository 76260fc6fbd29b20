"""The sound of a source, taken out once into an mp4 of our own, from which the final file copies it.

aac, mp3, ac3 and eac3 packets are copied with their times untouched, negative ones too; the mp4 muxer would accept anything
else as well, but phones and QuickTime stay silent on it, so the rest is encoded to AAC with its times passed on. Forcing the
first time to 0 instead would shift sound by 23 ms or lose a late start.

The user's file is opened in a child process (`actors.video.sound_child`), which is killed when it stalls.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.video.limits import Limits
from actors.video.own import partial_path, publish
from cluster.errors import MediaError

#: Codecs whose packets are copied: every phone, browser and television plays them from mp4.
COPIED = frozenset({"aac", "mp3", "mp3float", "ac3", "eac3"})


@dataclass(frozen=True, slots=True)
class SoundTrack:
    """One sound track that has any sound, and what became of it.

    Attributes:
        stream: stream index in our own file.
        index: stream index in the source.
        codec: the source's codec.
        copied: True when its packets were copied, False when it was encoded to AAC.
        language: ISO 639 code, empty when the source does not say.
        title: as in the source, often empty.
        first: seconds, on the source's clock, of the first packet (copied) or of the first sample (encoded).
        end: seconds, on the same clock, of the end of the last one.
    """

    stream: int
    index: int
    codec: str
    copied: bool
    language: str
    title: str
    first: float
    end: float


@dataclass(frozen=True, slots=True)
class Sound:
    """All sound tracks of a source in a file of our own, on the source's clock."""

    path: Path
    tracks: tuple[SoundTrack, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values, for storing beside the file."""
        return {"path": str(self.path), "tracks": [asdict(track) for track in self.tracks]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Sound:
        """The inverse of `to_json`."""
        return cls(Path(data["path"]), tuple(SoundTrack(**track) for track in data["tracks"]))


def extract_sound(source: Path, target: Path, limits: Limits) -> Sound | None:
    """Write all sound tracks of `source` to `target` (an mp4), in a child process.

    Args:
        source: the file that the plan's times were read from (for MPEG-TS its remuxed copy).
        target: published whole.
        limits: bounds on the source and on the child.

    Returns:
        None when the source has no sound; no file is written then.

    Raises:
        MediaError: the source is refused, its sound cannot be read, or reading it crashed or stalled.
    """
    partial = partial_path(target)
    try:
        tracks = _run_child(source, partial, limits)
        if not tracks:
            return None
        publish(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return Sound(target, tracks)


def _run_child(source: Path, target: Path, limits: Limits) -> tuple[SoundTrack, ...]:
    """Run the child to its end; it writes a line for every bit of progress, and its result as the last one."""
    project = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH", "")
    request = json.dumps({"source": str(source), "target": str(target), "limits": limits.to_json()})
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            [sys.executable, "-m", "actors.video.sound_child", request],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in (project, inherited) if p)},
        ) as child,
    ):
        try:
            last = _last_line(child, source.name, limits.stall_seconds)
        except BaseException:
            child.kill()
            raise
        code = child.wait()
        complaints.seek(0)
        said = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
    try:
        result = json.loads(last)
    except ValueError as error:
        reason = f"the process that reads its sound ended with code {code}: {' '.join(said)}"
        raise MediaError(source.name, reason, place="sound", remedy="convert it first") from error
    if "error" in result:
        raise MediaError(source.name, result["error"], place=result["place"], remedy=result["remedy"])
    return tuple(SoundTrack(**track) for track in result["tracks"])


def _last_line(child: subprocess.Popen[bytes], name: str, stall_seconds: float) -> bytes:
    """What the child writes last, once it closes its output; raises when it writes nothing for too long."""
    assert child.stdout is not None
    line, unfinished = b"", b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(stall_seconds):
                reason = f"nothing could be read for {stall_seconds:g} s"
                raise MediaError(name, reason, place="sound", remedy="raise limits.stall_seconds")
            data = os.read(child.stdout.fileno(), 65536)
            if not data:
                return line
            *finished, unfinished = (unfinished + data).split(b"\n")
            line = finished[-1] if finished else line
