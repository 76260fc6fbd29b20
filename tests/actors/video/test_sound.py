"""Sound: what went in comes out, all tracks of it, where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from actors.video.limits import Limits
from actors.video.sound import Sound, extract_sound
from actors.video.verify import verify
from cluster.errors import MediaError
from cluster.files import sha256_of
from tests.media import Sound as Track
from tests.media import click_times, flash_times, write_clip
from tests.segments import source_times, write_final

LIMITS = Limits()


def restage(folder: Path, name: str, tracks: tuple[Track, ...], **clip: Any) -> tuple[Path, Path, Sound | None]:
    """A clip, and a final with its times, its flashes and its sound, verified."""
    source = folder / name
    write_clip(source, frames=66, width=160, height=96, sounds=tracks, **clip)
    pts, time_base, flashes = source_times(source)
    sound = extract_sound(source, folder / "sound.mp4", LIMITS)
    last = int(pts[-1] - pts[-2])
    final, joined = write_final(folder / "out", [40, len(pts) - 40], pts, time_base, last, sound, flashes)
    assert joined.sounds == (sound.tracks if sound else ())
    verify(final, pts=pts, time_base=time_base, last_duration=last, sounds=joined.sounds)
    return source, final, sound


def packets(path: Path, track: int = 0) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as container:  # noqa: TID251
        stream = container.streams.audio[track]
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.size]


CASES: dict[str, tuple[str, Track, bool, dict[str, Any]]] = {
    "mp4 aac": ("a.mp4", Track(), True, {}),
    "sound early": ("a.mp4", Track(), True, {"start": 0.4}),
    "sound late": ("a.mp4", Track(start=0.4), True, {}),
    "clicks early": ("a.mp4", Track(skew=-0.4), True, {}),
    "both late": ("a.mp4", Track(start=1.1), True, {"start": 1.5}),
    "trimmed": ("a.mp4", Track(), True, {"trim": 13}),
    "longer": ("a.mp4", Track(seconds=4.0), True, {}),
    "shorter": ("a.mp4", Track(seconds=1.5), True, {}),
    "mp4 ac3": ("a.mp4", Track(codec="ac3"), True, {}),
    "mkv mp3": ("a.mkv", Track(codec="libmp3lame", rate=44100, layout="mono"), True, {}),
    "mkv opus": ("a.mkv", Track(codec="libopus"), False, {}),
    "mkv flac late": ("a.mkv", Track(codec="flac", start=0.3), False, {}),
    "avi pcm": ("a.avi", Track(codec="pcm_s16le", rate=44100, layout="mono"), False, {"codec": "mpeg4"}),
    "mkv pcm 96 kHz": ("a.mkv", Track(codec="pcm_s16le", rate=96000), False, {}),
    "mov pcm odd rate": ("a.mov", Track(codec="pcm_s16le", rate=18900), False, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_clicks_stay_where_they_were_against_the_flashes(tmp_path: Path, case: str) -> None:
    name, track, copied, clip = CASES[case]
    source, final, sound = restage(tmp_path, name, (track,), **clip)
    assert sound is not None
    assert [t.copied for t in sound.tracks] == [copied]
    flashes, clicks = flash_times(source), click_times(source)
    assert len(flashes) >= 1 and len(clicks) >= 1
    if name.endswith(".avi"):  # its times are made of index and rate, here 30
        assert len(flash_times(final)) == len(flashes)
    else:
        assert flash_times(final) == flashes
    assert click_times(final) == pytest.approx(clicks, abs=0.002 if copied else 0.005)
    if copied:
        before, after = packets(source), packets(final)
        assert [data for _, data in after] == [data for _, data in before]
        assert [t for t, _ in after] == pytest.approx([t for t, _ in before], abs=0.001)


def test_all_tracks_are_kept_with_language_title_and_default(tmp_path: Path) -> None:
    tracks = (Track(language="eng"), Track(codec="libopus", language="deu", tone=880.0), Track(language="fra"))
    source, final, sound = restage(tmp_path, "a.mkv", tracks)
    assert sound is not None
    assert [(t.copied, t.language) for t in sound.tracks] == [(True, "eng"), (False, "deu"), (True, "fra")]
    with av.open(str(final)) as container:  # noqa: TID251
        assert [s.language for s in container.streams.audio] == ["eng", "deu", "fra"]
        assert [s.codec_context.name for s in container.streams.audio] == ["aac"] * 3
    for i in range(3):
        assert click_times(final, i) == pytest.approx(click_times(source, i), abs=0.005)


def test_a_track_s_title_is_shown_by_players(tmp_path: Path) -> None:
    plain, titled = tmp_path / "plain.mkv", tmp_path / "titled.mkv"
    write_clip(plain, frames=30, width=160, height=96, sounds=(Track(),))
    with av.open(str(plain)) as src, av.open(str(titled), "w") as out:  # noqa: TID251
        streams = {s.index: out.add_stream_from_template(s, opaque=True) for s in src.streams}
        streams[src.streams.audio[0].index].metadata["title"] = "Commentary"
        for packet in src.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                out.mux(packet)
    sound = extract_sound(titled, tmp_path / "sound.mp4", LIMITS)
    assert sound is not None and sound.tracks[0].title == "Commentary"
    pts, time_base, _ = source_times(titled)
    final, _ = write_final(tmp_path / "out", [30], pts, time_base, 33, sound)
    with av.open(str(final)) as container:  # noqa: TID251
        assert container.streams.audio[0].metadata["handler_name"] == "Commentary"


def test_no_sound_stays_none(tmp_path: Path) -> None:
    _, final, sound = restage(tmp_path, "a.mp4", ())
    assert sound is None
    assert not (tmp_path / "sound.mp4").exists()
    with av.open(str(final)) as container:  # noqa: TID251
        assert not container.streams.audio


def test_a_gap_in_decoded_sound_stays_a_gap(tmp_path: Path) -> None:
    source = tmp_path / "gap.mkv"
    whole = tmp_path / "whole.mkv"
    write_clip(whole, frames=90, width=160, height=96, sounds=(Track(codec="pcm_s16le"),))
    with av.open(str(whole)) as src, av.open(str(source), "w") as out:  # noqa: TID251
        streams = {s.index: out.add_stream_from_template(s, opaque=True) for s in src.streams}
        for packet in src.demux():
            lost = packet.stream.type == "audio" and packet.size and 1.2 < packet.pts * packet.time_base < 1.7
            if packet.size and not lost:
                packet.stream = streams[packet.stream_index]
                out.mux(packet)
    extract_sound(source, tmp_path / "sound.mp4", LIMITS)
    clicks = click_times(source)
    assert clicks[-1] > 1.9
    assert click_times(tmp_path / "sound.mp4") == pytest.approx(clicks, abs=0.005)


def test_the_same_sound_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "a.mkv"
    write_clip(source, frames=30, width=160, height=96, sounds=(Track(), Track(codec="libopus")))
    for name in ("one.mp4", "two.mp4"):
        extract_sound(source, tmp_path / name, LIMITS)
    assert sha256_of(tmp_path / "one.mp4") == sha256_of(tmp_path / "two.mp4")


def test_what_was_found_survives_json(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    write_clip(source, frames=30, width=160, height=96, sounds=(Track(language="eng"),))
    sound = extract_sound(source, tmp_path / "sound.mp4", LIMITS)
    assert sound is not None
    assert Sound.from_json(sound.to_json()) == sound


def test_a_refused_source_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "text.mp4"
    source.write_text("no video")
    with pytest.raises(MediaError, match=r"text\.mp4"):
        extract_sound(source, tmp_path / "sound.mp4", LIMITS)
    assert [p.name for p in tmp_path.iterdir()] == ["text.mp4"]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_damaged_sound_that_would_be_copied_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = write_clip(tmp_path / name, frames=30, sounds=(Track(),)).path
    with av.open(str(path)) as container:  # noqa: TID251
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    data = bytearray(path.read_bytes())
    for at, size in places[10:14]:
        data[at + 8 : at + size] = b"\xff" * (size - 8)
    path.write_bytes(data)
    with pytest.raises(MediaError, match="sound cannot be read"):
        extract_sound(path, tmp_path / "sound.mp4", LIMITS)
    assert sorted(each.name for each in tmp_path.iterdir()) == [name]


def test_a_signal_survives_encoding(tmp_path: Path) -> None:
    source = tmp_path / "a.mkv"
    write_clip(source, frames=60, width=160, height=96, sounds=(Track(codec="flac", tone=1000.0),))
    extract_sound(source, tmp_path / "sound.mp4", LIMITS)
    with av.open(str(tmp_path / "sound.mp4")) as container:  # noqa: TID251
        wave = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], 1)
    assert wave.shape[0] == 2
    spectrum = np.abs(np.fft.rfft(wave[0][12_000:36_000]))
    assert abs(int(spectrum.argmax()) * 2 - 1000) <= 4
