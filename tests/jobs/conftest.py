"""Fixtures of the jobs' tests."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stdout

import pytest

from cluster.config import Config
from cluster.session import Session
from jobs.display import Display
from jobs.perform import perform
from jobs.task import VideoTask
from tests.jobs.performing import CONFIG, Performed, Performing, jobs_on


@pytest.fixture(scope="session")
def performed(local_ray: Session) -> Performing:
    """`perform` on the Ray that all tests share."""

    def run(tasks: Sequence[VideoTask], config: Config = CONFIG, *, allow_skew: bool = False) -> Performed:
        with jobs_on(local_ray), redirect_stdout(io.StringIO()) as said:
            outcomes = perform(tasks, config, Display("json"), allow_skew=allow_skew)
        events = [json.loads(line) for line in said.getvalue().splitlines()]
        return Performed({outcome.task.source.name: outcome for outcome in outcomes}, events)

    return run
