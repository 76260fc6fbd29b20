"""Where the service keeps what it keeps, and its configuration on the way to its processes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.config import Config
from cluster.service_settings import ServiceSettings
from jobs.backgrounds import Library, open_once
from jobs.limits import limits_of
from serve.folders import default_data

DATABASE = "troupe.db"


def resolved(config: Config) -> Config:
    """The configuration with the service's paths made absolute: from the file's folder, or from this process's."""
    folder, service = config.path.parent if config.path else Path.cwd(), config.troupe.service
    paths = {
        name: str((folder / Path(value).expanduser()).absolute())
        for name in ("tokens", "library", "data")
        if (value := getattr(service, name))
    }
    troupe = config.troupe.model_copy(update={"service": service.model_copy(update=paths)})
    return config.model_copy(update={"troupe": troupe})


def service_args(config: Config) -> dict[str, Any]:
    """What `serve.app:build` takes of a configuration."""
    return config.model_dump(mode="json", include={"http", "troupe", "pins"})


def library_of(config: Config) -> Library:
    """The server's background categories."""
    return Library(Path(config.troupe.service.library), partial(open_once, limits=limits_of(config)))


def data_root(settings: ServiceSettings, environ: Mapping[str, str]) -> Path:
    """The data folder."""
    return default_data(settings.data, environ)


def database_url(settings: ServiceSettings, environ: Mapping[str, str]) -> str:
    """The configured database, else SQLite in the data folder."""
    return settings.database or f"sqlite:///{data_root(settings, environ) / DATABASE}"
