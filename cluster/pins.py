"""Deploying pins and asking them what they are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ray import serve as ray_serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from cluster.causes import cause_of
from cluster.config import PinSettings
from cluster.errors import ClusterError

_DEPLOY_SECONDS = 120


def ensure_pins(
    pins: Iterable[PinSettings], build: Callable[[dict[str, Any]], ray_serve.Application]
) -> tuple[list[str], list[str]]:
    """Deploys the pins that are not running and waits until all take calls.

    Args:
        pins: what must run.
        build: makes a pin's application (`actors.pin:build`).

    Returns:
        Names of pins found running, and names of pins deployed now.

    Raises:
        ClusterError: a pin did not come up in time; the text carries Serve's own message.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray_serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING"))
    wanted = list(pins)
    # One that is coming up was deployed by somebody else just now: deploying it again would replace it at work.
    there = {
        name for name, state in ray_serve.status().applications.items() if state.status in ("RUNNING", "DEPLOYING")
    }
    found = [pin.name for pin in wanted if pin.name in there]
    missing = [pin for pin in wanted if pin.name not in there]
    if missing:
        ray_serve.run_many(
            [ray_serve.RunTarget(build(pin.model_dump()), name=pin.name, route_prefix=None) for pin in missing],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
    deadline = time.monotonic() + _DEPLOY_SECONDS
    for pin in wanted:
        _wait_running(pin.name, deadline)
    return found, [pin.name for pin in missing]


def handle(pin: str) -> DeploymentHandle:
    """The handle of a running pin; usable from drivers, lanes and replicas alike.

    Raises:
        ClusterError: no such application runs.
    """
    try:
        return ray_serve.get_app_handle(pin)
    except ray_serve.exceptions.RayServeException as error:
        raise ClusterError(f"pin {pin}", "is not deployed", remedy="run `serve deploy ray-config.yaml`") from error


def describe(pin: str, steps: Sequence[Mapping[str, Any]], timeout_s: float) -> dict[str, Any]:
    """What a pin says of itself after loading the models of `steps`.

    Raises:
        ClusterError: it did not answer in time.
        TroupeError: a model could not be loaded (the pin's own error).
    """
    try:
        answer: dict[str, Any] = handle(pin).describe.remote(steps).result(timeout_s=timeout_s)
    except RayTaskError as error:
        # First, because a TimeoutError of the pin's own arrives as both.
        raise cause_of(error) from error
    except TimeoutError as error:
        raise ClusterError(
            f"pin {pin}", f"did not answer within {timeout_s:.0f} s", remedy="see `serve status` and the pin's log"
        ) from error
    except (RayActorError, ray_serve.exceptions.RayServeException) as error:
        raise ClusterError(
            f"pin {pin}", "was lost while it loaded its models", remedy="see `serve status` and the pin's log"
        ) from error
    return answer


def await_ready(pin: str) -> None:
    """Returns when a replica of the pin answers, as a new one does once it is up.

    Raises:
        ClusterError: none does in time.
    """
    deadline = time.monotonic() + _DEPLOY_SECONDS
    while True:
        try:
            describe(pin, (), max(1.0, deadline - time.monotonic()))
        except ClusterError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _wait_running(name: str, deadline: float) -> None:
    while True:
        application = ray_serve.status().applications.get(name)
        status = str(application.status) if application else "NOT_STARTED"
        if status.endswith("RUNNING"):
            return
        if status.endswith(("DEPLOY_FAILED", "UNHEALTHY")) or time.monotonic() > deadline:
            messages = [d.message for d in application.deployments.values() if d.message] if application else []
            raise ClusterError(
                f"pin {name}",
                f"did not come up ({status}): {' '.join(messages) or 'no message from Serve'}"[:600],
                remedy="free its share (see `ray status`), lower its num_gpus, or unload what holds the GPU",
            )
        time.sleep(0.1)
