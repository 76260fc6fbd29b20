"""Where the service keeps what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cluster.config import ServiceSettings
from serve.folders import default_data

DATABASE = "troupe.db"


def data_root(settings: ServiceSettings, environ: Mapping[str, str]) -> Path:
    """The data folder."""
    return default_data(settings.data, environ)


def database_url(settings: ServiceSettings, environ: Mapping[str, str]) -> str:
    """The configured database, else SQLite in the data folder."""
    return settings.database or f"sqlite:///{data_root(settings, environ) / DATABASE}"
