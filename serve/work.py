"""What a kind of task is given and gives back. A kind is a function `(Work) → Made`; the Runner knows them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.config import Config
from serve.folders import TaskFolder
from serve.progress import TaskProgress
from serve.store import Task


@dataclass(frozen=True, slots=True)
class Work:
    """A claimed task in the hands of a lane.

    Attributes:
        task: as it was claimed.
        folder: its files; the input is there.
        config: pins, lanes, limits, the service's own settings.
        progress: told how far it is.
        stop: to be called at least about once a second; raises StoppedError.
    """

    task: Task
    folder: TaskFolder
    config: Config
    progress: TaskProgress
    stop: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Made:
    """A task's result and cost, as its row keeps them. `result["file"]` names a file of the folder `result`."""

    result: Mapping[str, Any]
    cost: Mapping[str, Any]
