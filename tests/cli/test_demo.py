"""The demo's drawings: a clip that is keyed as a green screen, a stage that loops, sound with clicks on the beat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors.frames import FrameBatch
from actors.matte import border_screen
from actors.matte.chroma import Chroma
from actors.video.limits import Limits
from actors.video.scan import scan
from cli.demo import clip, stage
from cli.demo.dancer import BEATS_PER_SECOND
from tests.media import click_times, read_rgb

FRAMES = 20

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def dancer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginning of the demo's clip."""
    path = tmp_path_factory.mktemp("demo") / "dancer.mp4"
    clip.write_clip(path, frames=FRAMES)
    return path


def test_clip_is_a_green_screen_with_a_figure_that_is_cut_out_clean(dancer: Path) -> None:
    frames = np.stack(read_rgb(dancer)[:3])
    assert frames.shape == (3, clip.HEIGHT, clip.WIDTH, 3)
    assert border_screen(frames[0]) == "green"
    batch = FrameBatch(rgb=frames, pts=np.arange(3), cut=np.zeros(3, bool))
    keyed, _ = Chroma()(batch, {}, {"screen": "green"})
    assert keyed.alpha is not None
    figure, screen = keyed.alpha >= 200, keyed.alpha <= 20
    assert 0.1 < figure.mean() < 0.3
    assert (figure | screen).mean() > 0.97
    assert keyed.alpha[:, :200].max() == 0
    # The foreground keeps no green.
    shown = keyed.rgb[keyed.alpha > 0].astype(int)
    assert (shown[:, 1] - shown[:, [0, 2]].max(1)).max() <= 1


def test_clip_has_sound_with_a_click_on_every_beat(dancer: Path, tmp_path: Path) -> None:
    found = scan(dancer, Limits(), workdir=tmp_path)
    assert len(found) == FRAMES
    assert [sound.codec for sound in found.info.sounds] == ["aac"]
    beats = [round(beat / BEATS_PER_SECOND, 3) for beat in range(2)]
    assert click_times(dancer) == pytest.approx(beats, abs=0.005)


def test_stage_has_no_seam() -> None:
    pairs = [(first, first + 1) for first in range(0, stage.FRAMES - 1, 9)]
    seam = (stage.FRAMES - 1, 0)
    frames = stage.pictures(index for pair in (*pairs, seam) for index in pair)
    jumps = [np.abs(b[::8, ::8].astype(int) - a[::8, ::8]).mean() for a, b in zip(frames, frames, strict=True)]
    assert 0 < jumps[-1] <= max(jumps[:-1])
