"""What may be configured of the HTTP service: where it listens, and how much it does and keeps."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class HttpSettings(BaseModel):
    """Where the HTTP service listens: Serve's `http_options`, of which Troupe needs these two."""

    model_config = ConfigDict(frozen=True)  # the others are Serve's own

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)


#: The service of this machine, which clients ask that are told of no other.
DEFAULT_SERVER = f"http://{HttpSettings().host}:{HttpSettings().port}"


class ServiceSettings(BaseModel):
    """The HTTP service.

    Attributes:
        data: folder of tasks, uploads and results; empty for $TROUPE_DATA or the user's data folder.
        database: `sqlite:///FILE`, `mysql+aiomysql://…`, `postgresql+asyncpg://…`; empty for SQLite in `data`.
        tokens: YAML file of tokens; without one the service answers on loopback only.
        runners: tasks worked on at once. One more is kept for clips that somebody waits for.
        runner_cpus: Ray's bookkeeping for each of them, and for the ingress.
        lease_s: a task whose runner was silent for so long is given to another one.
        attempts: how often a task is begun before it counts as failed.
        preset: of requests that name none.
        background: of requests that name none; empty for the preset's.
        library: folder of background categories.
        max_uploads: uploads received at once.
        max_upload_gib: size of one.
        max_requests: requests being answered at once; more are refused with 429.
        max_active: tasks queued or running in all; more are refused with 429.
        on_demand_seconds: longest clip of `/v1/restage`.
        on_demand_megapixels: largest image, coming in or going out.
        on_demand_mib: largest image file.
        on_demand_at_once: images and clips being worked on or waiting for it; more are refused with 429.
        on_demand_wait_s: how long a client is kept waiting for an answer before it gets a task to look at later.
        events_per_token: event streams open at once.
        keep_days: how long results are kept.
        keep_gib: results that are kept, all together; the oldest go first.
        fetch_seconds: longest time for fetching a `video_url`.
        allow_networks: private networks (CIDR) that a `video_url` or a webhook may lead to.
        allow_ports: ports that they may lead to.
        webhook_secret_env: environment variable with the secret that webhooks are signed with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = ""
    database: str = ""
    tokens: str = ""
    runners: int = Field(default=2, ge=1, le=64)
    runner_cpus: float = Field(default=0.1, gt=0)
    lease_s: float = Field(default=30, ge=3, le=3600)
    attempts: int = Field(default=3, ge=1, le=100)
    preset: str = "balanced"
    background: str = ""
    library: str = "backgrounds"
    max_uploads: int = Field(default=4, ge=1)
    max_upload_gib: float = Field(default=2, gt=0)
    max_requests: int = Field(default=5000, ge=1)
    max_active: int = Field(default=10_000, ge=1)
    on_demand_seconds: float = Field(default=10, gt=0)
    on_demand_megapixels: float = Field(default=36, gt=0)
    on_demand_mib: float = Field(default=64, gt=0)
    on_demand_at_once: int = Field(default=32, ge=1)
    on_demand_wait_s: float = Field(default=60, gt=0, le=3600)
    events_per_token: int = Field(default=8, ge=1)
    keep_days: float = Field(default=7, gt=0)
    keep_gib: float = Field(default=50, gt=0)
    fetch_seconds: float = Field(default=600, gt=0)
    allow_networks: tuple[str, ...] = ()
    allow_ports: tuple[int, ...] = (80, 443)
    webhook_secret_env: str = "TROUPE_WEBHOOK_SECRET"

    @property
    def replicas(self) -> int:
        """Its processes: runners, the one for clips that somebody waits for, and the ingress."""
        return self.runners + 2
