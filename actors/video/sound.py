"""The sound of a source, taken out once into an mp4 of our own, from which the final file copies it.

aac, mp3, ac3 and eac3 packets are copied with their times untouched, negative ones too; the mp4 muxer would accept
anything else as well, but phones and QuickTime stay silent on it, so the rest is encoded to AAC with its times passed
on. Forcing the first time to 0 instead would shift sound by 23 ms or lose a late start.

The user's file is opened in the decoding process alone (`actors.video.sound_extract` runs there).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.video.beat import Beat, nothing, paced
from actors.video.limits import Limits
from actors.video.process import Child
from cluster.files import partial_path, publish

#: Codecs whose packets are copied: every phone, browser and television plays them from mp4.
COPIED = frozenset({"aac", "mp3", "mp3float", "ac3", "eac3"})

#: Samples that the AAC encoder puts before the first one it was given.
AAC_DELAY = 1024


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


def extract_sound(source: Path, target: Path, limits: Limits, *, beat: Beat = nothing) -> Sound | None:
    """Write all sound tracks of `source` to `target` (an mp4), in a child process.

    Args:
        source: the input itself; for MPEG-TS too, whose remuxed copy would pass MPEG-1 layer 2 off as mp3.
        target: published whole.
        limits: bounds on the source and on the child.
        beat: called about once a second or more often. What it raises goes on to the caller, when the child is gone and
            no file is left.

    Returns:
        None when the source has no sound; no file is written then.

    Raises:
        MediaError: the source is refused, its sound cannot be read, or reading it crashed or stalled.
    """
    partial = partial_path(target)
    try:
        with Child(source.name, limits, beat=paced(beat)) as child:
            request = {"path": str(source.absolute()), "target": str(partial.absolute()), "limits": limits.to_json()}
            child.send({"op": "sound", **request})
            message, _ = child.receive()
            while message["op"] != "done":
                message, _ = child.receive()
        if not message["tracks"]:
            return None
        publish(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return Sound(target, tuple(SoundTrack(**track) for track in message["tracks"]))
