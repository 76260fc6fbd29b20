"""Verification: a right file passes, and each way of being wrong is found and named."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from actors.video.boxes import video_end
from actors.video.limits import Limits
from actors.video.sound import Sound, extract_sound
from actors.video.verify import Verification, verify
from cluster.errors import JobError
from tests.media import Sound as Track
from tests.media import write_clip
from tests.segments import write_final

PTS = 3000 + np.cumsum(np.random.default_rng(2).integers(500, 2000, 40))
BASE = Fraction(1, 30000)
LAST = 1234


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    folder = tmp_path_factory.mktemp("sound")
    write_clip(folder / "a.mkv", frames=40, width=160, height=96, sounds=(Track(), Track(codec="libopus")))
    found = extract_sound(folder / "a.mkv", folder / "sound.mp4", Limits())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory, sound: Sound) -> Path:
    return write_final(tmp_path_factory.mktemp("final"), [25, 1, 14], PTS, BASE, LAST, sound)[0]


def check(final: Path, sound: Sound, pts: np.ndarray = PTS, last: int = LAST, base: Fraction = BASE) -> Verification:
    return verify(final, pts=pts, time_base=base, last_duration=last, sounds=sound.tracks)


def test_a_right_file_passes_and_says_what_was_checked(final: Path, sound: Sound) -> None:
    found = check(final, sound)
    assert (found.frames, found.sampled, found.sounds) == (40, 8, 2)
    assert found.seconds == pytest.approx(float((int(PTS[-1]) + LAST) * BASE))
    assert found.worst_offset < 0.001


def moved(index: int) -> np.ndarray:
    pts = PTS.copy()
    pts[index] += 1
    return pts


@pytest.mark.parametrize("index", [0, 17, 39])
def test_one_tick_at_one_frame_is_found(final: Path, sound: Sound, index: int) -> None:
    with pytest.raises(JobError, match=rf"final\.mp4: frame {index}: .*shown at"):
        check(final, sound, moved(index))


def test_a_missing_or_further_frame_is_found(final: Path, sound: Sound) -> None:
    with pytest.raises(JobError, match="40 frames"):
        check(final, sound, PTS[:-1])
    with pytest.raises(JobError, match="40 frames"):
        check(final, sound, np.append(PTS, PTS[-1] + 1000))


def test_another_last_duration_is_found(final: Path, sound: Sound) -> None:
    with pytest.raises(JobError, match="ends at"):
        check(final, sound, last=LAST + 1)


def test_a_missing_sound_track_is_found(final: Path, sound: Sound) -> None:
    with pytest.raises(JobError, match="2 sound tracks, the source 1"):
        check(final, replace(sound, tracks=sound.tracks[:1]))


@pytest.mark.parametrize(("track", "seconds"), [(0, 0.003), (1, -0.006)])
def test_sound_that_moved_is_found(final: Path, sound: Sound, track: int, seconds: float) -> None:
    tracks = list(sound.tracks)
    tracks[track] = replace(tracks[track], first=tracks[track].first + seconds)
    with pytest.raises(JobError, match=f"sound track {track}: starts"):
        check(final, replace(sound, tracks=tuple(tracks)))


@pytest.mark.parametrize("track", [0, 1])
def test_sound_that_was_cut_is_found(final: Path, sound: Sound, track: int) -> None:
    tracks = list(sound.tracks)
    tracks[track] = replace(tracks[track], end=tracks[track].end + 0.1)
    with pytest.raises(JobError, match=f"sound track {track}: ends"):
        check(final, replace(sound, tracks=tuple(tracks)))


def test_damage_inside_is_found(final: Path, sound: Sound, tmp_path: Path) -> None:
    data = bytearray(final.read_bytes())
    middle = data.find(b"mdat") + (len(data) - data.find(b"mdat")) // 3
    data[middle : middle + 400] = bytes(400)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data)
    with pytest.raises(JobError, match=r"broken\.mp4"):
        check(broken, sound)


def test_a_cut_off_file_is_found(final: Path, sound: Sound, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(final.read_bytes()[:-3000])
    with pytest.raises(JobError, match=r"broken\.mp4"):
        check(broken, sound)


def test_what_is_no_mp4_has_no_end(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for content in (b"", b"text that is no box at all", b"\0\0\0\x08free"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.mp4"):
            video_end(path)
