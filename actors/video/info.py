"""What is known of an input: plain values that cross process borders and are stored with plans."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

#: Codec of a sound stream that nothing here decodes.
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SoundInfo:
    """One sound stream.

    Attributes:
        index: stream index in the container.
        codec: decoder name (`aac`, `pcm_s16le`, ...) or UNKNOWN.
        rate: samples per second.
        channels: number of channels.
        layout: channel layout by name, empty when the file does not say.
        start: seconds of the first sample by the stream's header, None when unknown.
        language: ISO 639 code, empty when unknown.
    """

    index: int
    codec: str
    rate: int
    channels: int
    layout: str
    start: float | None
    language: str


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """One input as its decoder will yield it.

    Attributes:
        format: container, by libavformat's short names (`mov,mp4,m4a,3gp,3g2,mj2`).
        codec: video decoder name.
        video_index: stream index of the video.
        width, height: size of a decoded frame: rotation applied, pixels square.
        coded_width, coded_height: size as stored.
        rate: frames per second; a hint only, times are the plan's.
        time_base: seconds per tick of `pts`.
        start: first time in ticks by the stream's header, 0 when unknown.
        rotation: degrees counter-clockwise that were applied: 0, 90, 180 or 270.
        pixel_aspect: width / height of a stored pixel.
        pix_fmt: stored pixel format.
        bits: bits per component.
        matrix: matrix used for YUV to RGB: `bt601`, `bt709`, `smpte240m`, `fcc`, `bt2020`, or `rgb` for none.
        full_range: whether stored values span 0..255.
        transfer: transfer characteristic number of ISO 23091-4 (1 BT.709, 2 unknown, 16 PQ, 18 HLG).
        hdr: tone-mapped from PQ or HLG.
        interlaced: fields were merged by bwdif.
        index_times: times of the file are missing or out of order, and frames are told by their number.
        duration: seconds by the container's header, None when unknown.
        sounds: sound streams in file order.
        notices: everything about this input that the result must report.
    """

    format: str
    codec: str
    video_index: int
    width: int
    height: int
    coded_width: int
    coded_height: int
    rate: Fraction
    time_base: Fraction
    start: int
    rotation: int
    pixel_aspect: Fraction
    pix_fmt: str
    bits: int
    matrix: str
    full_range: bool
    transfer: int
    hdr: bool
    interlaced: bool
    index_times: bool
    duration: float | None
    sounds: tuple[SoundInfo, ...]
    notices: tuple[str, ...]

    def with_notice(self, *texts: str) -> MediaInfo:
        """The same with more to report."""
        return replace(self, notices=(*self.notices, *(t for t in texts if t not in self.notices)))

    def with_fields_merged(self, interlaced: bool) -> MediaInfo:
        """The same, interlaced or not, and reported."""
        info = replace(self, interlaced=interlaced)
        return info.with_notice("interlaced: fields merged (bwdif)") if interlaced else info

    def to_json(self) -> dict[str, Any]:
        """JSON values; fractions as `n/d` text."""
        data = asdict(self)
        for key in ("rate", "time_base", "pixel_aspect"):
            data[key] = str(data[key])
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MediaInfo:
        """The inverse of `to_json`."""
        fractions = {key: Fraction(data[key]) for key in ("rate", "time_base", "pixel_aspect")}
        sounds = tuple(SoundInfo(**sound) for sound in data["sounds"])
        return cls(**{**data, **fractions, "sounds": sounds, "notices": tuple(data["notices"])})
