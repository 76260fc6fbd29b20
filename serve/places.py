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
from serve.edge.auth import tokens_of
from serve.folders import default_data
from serve.store.database import SQLITE, parsed
from serve.transfer.addresses import parse_networks
from serve.transfer.webhooks import Signer

DATABASE = "troupe.db"


def resolved(config: Config) -> Config:
    """The configuration with the service's paths made absolute: from the file's folder, or from this process's.

    Raises:
        UsageError: the database is none that `serve.store.Store` takes.
    """
    folder, service = config.path.parent if config.path else Path.cwd(), config.troupe.service
    paths = {
        name: str((folder / Path(value).expanduser()).absolute())
        for name in ("tokens", "library", "data")
        if (value := getattr(service, name))
    }
    if service.database and (url := parsed(service.database)).get_backend_name() == SQLITE:
        file = (folder / Path(url.database or "").expanduser()).absolute()
        paths["database"] = url.set(database=str(file)).render_as_string()
    troupe = config.troupe.model_copy(update={"service": service.model_copy(update=paths)})
    return config.model_copy(update={"troupe": troupe})


def check(config: Config, environ: Mapping[str, str]) -> None:
    """Refuses what no replica could start with, where the operator sees it instead of in a replica's log.

    Raises:
        UsageError: the address is open to others and there are no tokens, or the tokens file, the webhook secret or a
            network is none.
    """
    tokens_of(config, environ)
    Signer.from_environ(config.troupe.service.webhook_secret_env, environ)
    parse_networks(config.troupe.service.allow_networks)


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
