"""The job of the chaos test, as a command that can be killed: `python -m tests.chaos.driver CLIPS OUTPUT`.

It joins the Ray at RAY_ADDRESS, as a restaging does, and does every clip of a folder with a chain of stateful models
that run in two pins. Its workers know the models of `tests.models` and carry its mark in their environment.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from actors.model import Step
from cluster.config import BatchSettings, Config, TroupeSettings
from cluster.session import use_token
from cluster.weights import WeightsStore
from jobs.command import carry_out
from jobs.display import Display
from jobs.inputs import Input
from jobs.restage.ingest import Ingest
from jobs.task import VideoTask
from tests.jobs.command import MARK
from tests.models import install
from tests.pins import FIRST, SECOND

LANES = 2
#: Two, because a chain loses its calls in another way than a single pin does: those of the second hang on the first.
PINS = (FIRST, SECOND)
#: Six frames to a segment of the test's clips, in three batches: as many as are in flight.
CONFIG = Config(
    pins=PINS,
    troupe=TroupeSettings(batch=BatchSettings(lanes=LANES, segment_seconds=0.5, batch_frames=2, batch_mib=1)),
)
#: Long enough that kills find calls at work.
STEPS = (Step("pinned-trail", {}, {"pause": 0.02}), Step("pinned-trail-too", {}, {"pause": 0.02}))


def task_of(clip: Path, ingest: Ingest, output: Path, steps: tuple[Step, ...]) -> VideoTask:
    """The task of one clip."""
    item = Input(clip, output / clip.name)
    return replace(ingest.task(item, ingest.look(item)), steps=steps)


def main(clips: Path, output: Path) -> int:
    """Does what is not done; returns how many clips failed."""
    from tests.jobs.inprocess import ingest_of  # imports Ray

    display = Display("json")
    ingest = ingest_of(output, CONFIG)
    wanted = [
        (Input(clip, output / clip.name), partial(task_of, clip, ingest, output, STEPS))
        for clip in sorted(clips.glob("*.mp4"))
    ]
    carry_out(
        wanted, output / ".troupe", WeightsStore(output), CONFIG, display, force=False, preview=False, allow_skew=False
    )
    return display.summary(len(wanted), output)


if __name__ == "__main__":
    install()
    use_token(os.environ)
    import ray

    # Jobs give their workers no environment of their own; what is added here is the test's, not the job's.
    workers = {"worker_process_setup_hook": install, "env_vars": {MARK: os.environ[MARK]}}
    ray.init = partial(ray.init, runtime_env=workers)
    sys.exit(main(*map(Path, sys.argv[1:])))
