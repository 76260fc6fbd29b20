"""Fixtures of the jobs' tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from cluster.config import Config
from cluster.session import Session, messages_on_stderr
from jobs import perform as perform_module
from jobs.display import Display
from jobs.perform import perform
from jobs.task import VideoTask
from tests.jobs.performing import CONFIG, Performed, Performing


@pytest.fixture
def performed(local_ray: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Performing:
    """`perform` on the Ray that all tests share."""

    @contextmanager
    def connected() -> Iterator[Session]:
        with messages_on_stderr():
            yield local_ray

    monkeypatch.setattr(perform_module, "connect", connected)

    def run(tasks: Sequence[VideoTask], config: Config = CONFIG, *, allow_skew: bool = False) -> Performed:
        capsys.readouterr()
        outcomes = perform(tasks, config, Display("json"), allow_skew=allow_skew)
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return Performed({outcome.task.source.name: outcome for outcome in outcomes}, events)

    return run
