"""Starting a local Ray or joining one, with the settings that bound the object store's memory.

Ray frees dead objects about once a second or per hundred by default; frames make that gigabytes. Every Ray started
here frees at once (`FREE_OBJECTS`). The settings act on the node, so a job that joins cannot set them and says so.
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError, UsageError
from cluster.processes import end_descendants

RAY_SERIES = "2.60."
FREE_OBJECTS = {"free_objects_period_milliseconds": 50, "free_objects_batch_size": 1}
_CONNECT_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Session:
    """A connected Ray.

    Attributes:
        joined: True when the cluster was there before; then pins outlive this process.
        cpus, gpus: what the cluster has in all.
        object_store_bytes: size of the object store, all nodes together.
        submitted: True inside `ray job submit`.
    """

    joined: bool
    cpus: float
    gpus: float
    object_store_bytes: int
    submitted: bool


def check_ray_version() -> None:
    """Raises UsageError unless the installed Ray is of the series that Troupe was measured with."""
    found = version("ray")
    if not found.startswith(RAY_SERIES):
        raise UsageError(
            f"Ray {found}",
            f"is not of the {RAY_SERIES}x series that Troupe needs",
            remedy=f'pip install "ray[default,serve,data]=={RAY_SERIES}*"',
        )


def is_submitted_job(environ: MutableMapping[str, str]) -> bool:
    """Whether this process is the entry point of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in environ


def joins(environ: MutableMapping[str, str]) -> bool:
    """Whether jobs join a running cluster: in a submitted job, or when RAY_ADDRESS names one."""
    return is_submitted_job(environ) or environ.get("RAY_ADDRESS", "") not in ("", "local")


def use_token(environ: MutableMapping[str, str]) -> None:
    """Lets this client present the cluster's token: Ray looks for one only when RAY_AUTH_MODE=token is set.

    To be called before `ray` is imported: it reads the mode then, and never again. Does nothing for a local Ray.

    Raises:
        UsageError: token mode is on and there is no token; Ray itself would abort the process.
    """
    if not joins(environ):
        return
    stored = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    has_token = bool(environ.get("RAY_AUTH_TOKEN")) or stored.is_file()
    if has_token:
        environ.setdefault("RAY_AUTH_MODE", "token")
    elif environ.get("RAY_AUTH_MODE") == "token":
        raise UsageError(
            "RAY_AUTH_MODE=token",
            f"there is no token at {stored}",
            remedy="copy the head node's ~/.ray/auth_token there, or set RAY_AUTH_TOKEN",
        )


@contextmanager
def connect(*, num_cpus: int | None = None, num_gpus: float | None = None) -> Iterator[Session]:
    """Joins the Ray at RAY_ADDRESS, or starts a local one that ends with this context.

    Args:
        num_cpus, num_gpus: what a local Ray is told it has; None lets it count.

    Raises:
        ClusterError: no Ray answers at RAY_ADDRESS within a bounded time.
        UsageError: wrong version of Ray, or a token is demanded and missing.
    """
    check_ray_version()
    submitted, joined = is_submitted_job(os.environ), joins(os.environ)
    address = os.environ.get("RAY_ADDRESS", "")
    use_token(os.environ)
    if joined:
        _check_answers(address)
    # Ray reports what its users run to its makers unless told not to; nobody asked for that here.
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_DATA_USAGE_DISABLED", "1")):
        os.environ.setdefault(name, value)
    import ray

    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not joined:
        options |= {
            "address": "local",
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "include_dashboard": False,
            "_system_config": FREE_OBJECTS,
        }
        # Ray hands this path to a shell as it is, and would wait for ever for workers of a path with a space.
        if (quoted := shlex.quote(sys.executable)) != sys.executable:
            options["runtime_env"] = {"py_executable": quoted}
    try:
        with warnings.catch_warnings(), _without_core_notes():
            warnings.simplefilter("ignore")
            ray.init(**options)
    except KeyboardInterrupt:
        _give_up_start(joined=joined)
        raise
    except Exception as error:  # Ray raises anything here, a plain Exception when its own 30 s for a node are over
        _give_up_start(joined=joined)
        raise ClusterError(
            f"Ray at {address}" if joined else "Ray",
            f"did not start or answer: {_first_line(error)}",
            remedy="check RAY_ADDRESS and the token, or unset RAY_ADDRESS to start a local Ray"
            if joined
            else "try again when the machine is less busy, or run `troupe doctor`",
        ) from error
    try:
        resources = ray.cluster_resources()
        yield Session(
            joined=joined,
            cpus=float(resources.get("CPU", 0)),
            gpus=float(resources.get("GPU", 0)),
            object_store_bytes=int(resources.get("object_store_memory", 0)),
            submitted=submitted,
        )
    finally:
        ray.shutdown()


def _give_up_start(*, joined: bool) -> None:
    """Ends what a start that did not succeed left running: agents of Ray outlive their parent otherwise."""
    import ray

    if not joined and not ray.is_initialized():
        end_descendants()
    ray.shutdown()


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Moves what Ray prints by itself (a worker that died, a busy node) to standard error.

    A driver prints such messages on standard output whatever `log_to_driver` says, between the lines of `--json`.
    Who has results to write keeps the stream that it found before.
    """
    with redirect_stdout(sys.stderr):
        yield


def _check_answers(address: str) -> None:
    """Raises ClusterError within seconds when nobody listens at `host:port`; Ray itself would try for a minute."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or "/" in host:
        if "://" in address:
            raise UsageError(
                f"RAY_ADDRESS={address}",
                "is not the address of a cluster's head for drivers",
                remedy="give host:port as `ray start --head` printed it (port 6379), or `auto`",
            )
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"Ray at {address}",
            f"does not answer: {error.strerror or error}",
            remedy="check RAY_ADDRESS, or unset it to start a local Ray",
        ) from error


@contextmanager
def _without_core_notes() -> Iterator[None]:
    """Keeps Ray's C++ core from writing notes about its own actors between our lines.

    It reads its level once, while it starts in this process, and announces the level on standard error, past Python.
    What it wrote is shown when starting fails.
    """
    before = os.environ.get("RAY_BACKEND_LOG_LEVEL")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with tempfile.TemporaryFile() as kept:
            os.dup2(kept.fileno(), 2)
            try:
                yield
            except BaseException:
                kept.seek(0)
                os.write(stderr, kept.read())
                raise
            finally:
                os.dup2(stderr, 2)
    finally:
        os.close(stderr)
        if before is None:
            del os.environ["RAY_BACKEND_LOG_LEVEL"]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
