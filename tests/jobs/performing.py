"""Batches of small clips performed on the Ray that all tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from actors.model import Step
from cluster.config import BatchSettings, Config, TroupeSettings
from cluster.session import Session, messages_on_stderr
from jobs import perform as performing
from jobs.assemble import assemble
from jobs.batch import Outcome
from jobs.plan import plan_video
from jobs.task import VideoTask
from tests.jobs.inprocess import do_segments, task_of
from tests.media import Sound, write_clip
from tests.pins import FIRST, SECOND

#: One lane, because each is a process that takes seconds to start.
CONFIG = Config(
    pins=(FIRST, SECOND), troupe=TroupeSettings(batch=BatchSettings(segment_seconds=1, lanes=1, retries=1, batch_mib=1))
)
TWO_LANES = CONFIG.model_copy(
    update={"troupe": TroupeSettings(batch=CONFIG.troupe.batch.model_copy(update={"lanes": 2}))}
)


@dataclass
class Performed:
    """What a job said and how its videos ended, by file name."""

    outcomes: dict[str, Outcome]
    events: list[dict[str, Any]]

    @property
    def statuses(self) -> dict[str, str]:
        return {name: outcome.status for name, outcome in self.outcomes.items()}

    @property
    def notes(self) -> list[str]:
        return [event["text"] for event in self.events if event["event"] == "note"]


#: `performed(tasks, config, allow_skew=…)`, a fixture.
Performing = Callable[..., Performed]


@contextmanager
def jobs_on(session: Session) -> Iterator[None]:
    """Jobs of this process are performed on the Ray that it is connected to."""

    @contextmanager
    def connected() -> Iterator[Session]:
        with messages_on_stderr():
            yield session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(performing, "connect", connected)
        yield


def clips(folder: Path, *names: str, frames: int = 36) -> list[Path]:
    """Clips of three seconds whose frame numbers go on from one to the next."""
    return [
        write_clip(folder / name, frames=frames, rate=12, width=64, height=48, sounds=(Sound(),), first=100 * i).path
        for i, name in enumerate(names)
    ]


def tasks_of(folder: Path, output: str, *names: str, steps: tuple[Step, ...] = ()) -> list[VideoTask]:
    sources = [folder / name for name in names]
    if missing := [source.name for source in sources if not source.exists()]:
        clips(folder, *missing)
    return [replace(task_of(source, folder / output, CONFIG), steps=steps) for source in sources]


def undisturbed(task: VideoTask, folder: Path) -> bytes:
    """The file that one process makes, its pinned models in the lane."""
    alone = replace(task, root=folder / ".troupe", output=folder / "alone.mp4")
    plan = plan_video(alone)
    do_segments(alone, plan, CONFIG)
    assemble(alone, plan)
    return alone.output.read_bytes()
