"""The application is refused where its operator sees it, and its paths mean the same for all its processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.config import Config
from cluster.errors import UsageError
from serve.app import build
from serve.places import resolved, service_args
from tests.serve.service import settings


@pytest.mark.parametrize(
    ("service", "secret", "named"),
    [
        ({}, "whsec_c2hvcnQ=", "webhook secret"),
        ({"allow_networks": ["10.0.0.1/8"]}, "", "allow_networks"),
        ({"database": "oracle://troupe:secret@db/troupe"}, "", "not supported"),
        ({"database": "nothing at all"}, "", "is not a URL"),
    ],
)
def test_settings_that_no_replica_could_start_with_are_refused_when_it_is_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: dict[str, Any], secret: str, named: str
) -> None:
    monkeypatch.setenv("TROUPE_WEBHOOK_SECRET", secret)
    with pytest.raises(UsageError, match=named):
        build(service_args(settings(tmp_path, **service)))
    assert not ray.is_initialized()  # nobody who only asks gets a Ray


@pytest.mark.parametrize(
    ("database", "expected"),
    [
        ("sqlite:///x.db", "sqlite+aiosqlite:///{}/x.db"),
        ("sqlite:////srv/x.db", "sqlite+aiosqlite:////srv/x.db"),
        ("mysql://troupe:a@db/troupe", "mysql://troupe:a@db/troupe"),
        ("", ""),
    ],
)
def test_database_that_is_a_file_lies_beside_the_configuration(tmp_path: Path, database: str, expected: str) -> None:
    config = settings(tmp_path, database=database).model_copy(update={"path": tmp_path / "ray-config.yaml"})
    found: Config = resolved(config)
    assert found.troupe.service.database == expected.format(tmp_path)
