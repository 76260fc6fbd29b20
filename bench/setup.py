"""What the comparisons share: clips, weights, and how a case becomes a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from actors.frames import FrameBatch
from bench.clip import drawn, write_backdrop, write_clip
from bench.job import Job
from bench.models import HEAVY, HEAVY_SECONDS, LIGHT, MATTE, TARGET, Bare, Case, write_weights
from cluster.config import BatchSettings, Config, PinSettings, TroupeSettings
from cluster.weights import WeightsStore
from jobs.restage.settings import resolve

#: What a warm-up job takes: enough to load every model and to start a lane once.
WARM_FRAMES = 4
#: Of every encode on both sides of a comparison with networks.
_CRF, _PRESET = 18, "fast"
#: Of a GPU, for each pin; two cases in both layouts have six.
_SHARE = 0.15
#: Of pins: each model in a pin of its own, or both in one.
LAYOUTS = ("each", "one")


@dataclass(frozen=True, slots=True)
class Bench:
    """What all parts share.

    Attributes:
        folder: for clips, weights, results.
        frames: of the heavy clip; light ones take `light_frames`, draft ones `draft_frames`.
        rounds: repetitions of every comparison.
        threads: torch's, of the bare networks and of each pin.
        layouts: `each` model in a pin of its own, or both in `one` (as shipped). Part (a) measures all that are
            given, (b) the first.
        source: a video instead of the drawn clip.
        heavy: networks of (a) and (b); None for the first of `HEAVY` that takes a second a frame here.
        say: tells what is going on.
    """

    folder: Path
    frames: int
    rounds: int
    threads: int
    layouts: tuple[str, ...]
    source: Path | None
    heavy: Case | None
    say: Callable[[str], None]

    @property
    def device(self) -> str:
        """Where networks run; pins choose by what Ray sees, which is the same."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def clip(self, frames: int, size: tuple[int, int]) -> Path:
        """A clip of that many frames, written once."""
        path = self.folder / f"clip-{frames}-{size[0]}x{size[1]}.mp4"
        if not path.is_file():
            write_clip(path, frames, size, self.source)
        return path

    def backdrop(self, size: tuple[int, int]) -> Path:
        """The background."""
        return write_backdrop(self.folder / "backdrop.png", size)

    def case(self, name: str) -> Case:
        """The `light` or the `heavy` networks, whose weights are written then."""
        chosen = LIGHT if name == "light" else self.heavy
        if chosen is not None:
            self.write_weights(chosen)
            return chosen
        for case in HEAVY:
            seconds = self._frame_seconds(case)
            self.say(f"{case.label}: {seconds:.2f} s a frame")
            if seconds >= HEAVY_SECONDS:
                break
        return case

    def _frame_seconds(self, case: Case) -> float:
        store = self.write_weights(case)
        picture = next(drawn(case.size))
        task = self.job(case, self.clip(WARM_FRAMES, case.size), "each").task("look")
        bare = Bare(task.steps, store, self.device, self.threads)
        batch = FrameBatch(picture[None], np.zeros(1, np.int64), np.zeros(1, np.bool_))
        bare.seconds([batch])
        return sum(bare.seconds([batch]).values())

    @property
    def weights(self) -> Path:
        """Folder of all checkpoints."""
        return self.folder / "weights"

    def write_weights(self, case: Case) -> WeightsStore:
        """The case's checkpoints; those of other cases stay."""
        return write_weights(self.weights, case, next(drawn(case.size)))

    def job(self, case: Case, clip: Path, layout: str) -> Job:
        """The case, whose weights are written, as a job."""
        # Names of their own, so that the pins of all cases and layouts stay warm side by side.
        hosted = (
            {f"{case.name}-one": (case.upscale, MATTE)}
            if layout == "one"
            else {f"{case.name}-upscale": (case.upscale,), f"{case.name}-matte": (MATTE,)}
        )
        pins = tuple(
            PinSettings(name=name, models=models, num_gpus=_SHARE, torch_threads=self.threads)
            for name, models in hosted.items()
        )
        config = Config(pins=pins, troupe=TroupeSettings(batch=BatchSettings(lanes=1)))
        settings = resolve(
            config,
            "balanced",
            upscale=case.upscale,
            target=TARGET,
            matte=MATTE,
            background=str(self.backdrop((960, 720))),
            crf=_CRF,
            x264=_PRESET,
            max_input=case.max_input,
            long_side=case.long_side,
        )
        return Job(clip, self.folder / "jobs" / f"{case.name}-{layout}", settings, config, self.weights)
