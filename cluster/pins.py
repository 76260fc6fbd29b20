"""Deploying pins and asking them what they are."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

import ray
from pydantic import ValidationError
from ray import serve as ray_serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve._private.application_state import StatusOverview
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from cluster.causes import cause_of
from cluster.config import PIN_IMPORT_PATH, PinSettings
from cluster.errors import ClusterError, DeferredError, PinAwayError, TroupeError

A = TypeVar("A")

_DEPLOY_SECONDS = 120
_DEFERRED_SECONDS = 1.0
_SLICE_SECONDS = 0.5
#: Between two looks at what comes up.
_STATUS_SECONDS = 0.4
_SEE_LOG = "see `serve status` and the pin's log"

#: States of a pin that has been deployed and need not be deployed again.
_THERE = ("RUNNING", "DEPLOYING", "UNHEALTHY")

#: In a driver: the pins that it deploys together, each of whose builders must not count the others' old shares.
_together: ContextVar[tuple[PinSettings, ...]] = ContextVar("_together", default=())


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
    _start_serve()
    wanted = list(pins)
    # One that is coming up was deployed by somebody else just now, and of one that is unhealthy Serve is replacing what
    # died: deploying them again would replace them at work.
    there = {name for name, state in _statuses().items() if state.app_status.status in _THERE}
    found = [pin.name for pin in wanted if pin.name in there]
    missing = [pin for pin in wanted if pin.name not in there]
    if missing:
        ray_serve.run_many(
            [ray_serve.RunTarget(build(pin.model_dump()), name=pin.name, route_prefix=None) for pin in missing],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
    deadline = time.monotonic() + _DEPLOY_SECONDS
    try:
        for pin in wanted:
            _wait_running(pin.name, deadline)
    except ClusterError:
        _take_away(pin.name for pin in missing)
        raise
    return found, [pin.name for pin in missing]


def deploy_all(
    pins: Sequence[PinSettings],
    build: Callable[[dict[str, Any]], ray_serve.Application],
    others: Mapping[str, ray_serve.Application],
) -> None:
    """Deploys all pins, and others beside them, and waits until all run. Those that run as they are configured are left
    alone.

    All at once: runners of an HTTP service give their tasks back when they are replaced, and would call pins that are
    not theirs any more if those came first.

    Raises:
        ClusterError: one cannot be built, or did not come up in time; those that did not run before are taken away.
    """
    _start_serve()
    _together.set(tuple(pins))
    _deploy({pin.name: build(pin.model_dump()) for pin in pins} | dict(others), pins=[pin.name for pin in pins])


def _deploy(applications: Mapping[str, ray_serve.Application], pins: Collection[str]) -> None:
    if not applications:
        return  # a service whose chains are light needs no pin; Serve refuses to deploy nothing
    before = set(_statuses())
    try:
        ray_serve.run_many(
            [ray_serve.RunTarget(built, name=name, route_prefix=None) for name, built in applications.items()],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        deadline = time.monotonic() + _DEPLOY_SECONDS
        for name in applications:
            _wait_running(name, deadline, "pin" if name in pins else "HTTP service")
    except ClusterError:
        _take_away(name for name in applications if name not in before)
        raise


def delete_applications(names: Iterable[str]) -> list[str]:
    """Ends those of the named applications that run, one after the other; returns which."""
    _quieten()
    there = _statuses()
    found = [name for name in names if name in there]
    for name in found:
        ray_serve.delete(name)
    return found


def _quieten() -> None:
    """Serve tells what it does between our lines otherwise."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def _start_serve() -> None:
    _quieten()
    ray_serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING"))


def _take_away(names: Iterable[str]) -> None:
    """What did not come up would wait for its share for ever, and take it from others once it is free."""
    for name in names:
        ray_serve.delete(name, _blocking=False)


def told_once(build: Callable[[A], ray_serve.Application]) -> Callable[[A], ray_serve.Application]:
    """An application's builder, whose errors Serve passes on as they are. It takes all but its own for passing ones: it
    would build three times more, each time in a new process, and then show a stack."""

    @wraps(build)
    def building(args: A) -> ray_serve.Application:
        try:
            return build(args)
        except TroupeError as error:
            if _is_builder():
                raise ray_serve.exceptions.RayServeException(str(error)) from error
            raise

    return building


def _is_builder() -> bool:
    """Whether this process is Serve's, at work on the file that `serve deploy` was given; or else a driver."""
    # Asked of a process without Ray, it would start one.
    return ray.is_initialized() and bool(ray.get_runtime_context().worker.mode == ray.WORKER_MODE)


def configured_pins() -> list[PinSettings]:
    """Pins that are deployed together: in Serve's builder those of the file that `serve deploy` was given."""
    if not _is_builder():
        return list(_together.get())
    details = ray_serve.context._get_global_client().get_serve_details()
    configs = [application.get("deployed_app_config") for application in details["applications"].values()]
    pins = []
    for config in configs:
        if config and config.get("import_path") == PIN_IMPORT_PATH:
            with contextlib.suppress(ValidationError):  # its own builder tells what is wrong with it
                pins.append(PinSettings.model_validate({"name": config.get("name"), **(config.get("args") or {})}))
    return pins


def handle(pin: str) -> DeploymentHandle:
    """The handle of a running pin; usable from drivers, lanes and replicas alike.

    Raises:
        PinAwayError: no such application runs.
    """
    try:
        return ray_serve.get_app_handle(pin)
    except ray_serve.exceptions.RayServeException as error:
        raise PinAwayError(f"pin {pin}", "is not deployed", remedy="run `serve deploy ray-config.yaml`") from error


def describe(
    pin: str, steps: Sequence[Mapping[str, Any]], timeout_s: float, beat: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """What a pin says of itself after loading the models of `steps`.

    Args:
        pin: its name.
        steps: whose models it loads.
        timeout_s: longest wait.
        beat: called about twice a second meanwhile; what it raises ends the wait.

    Raises:
        PinAwayError: it is not deployed, or did not answer in time.
        ClusterError: it was lost meanwhile.
        TroupeError: a model could not be loaded (the pin's own error).
    """
    deadline = time.monotonic() + timeout_s
    response = handle(pin).describe.remote(steps)
    try:
        while True:
            beat()
            left = deadline - time.monotonic()
            try:
                answer: dict[str, Any] = response.result(timeout_s=min(_SLICE_SECONDS, max(left, 0.0)))
                return answer
            except RayTaskError as error:
                # First, because a TimeoutError of the pin's own arrives as both.
                cause = cause_of(error)
                if not isinstance(cause, DeferredError) or left < _DEFERRED_SECONDS:
                    raise cause from error
                time.sleep(_DEFERRED_SECONDS)
                response = handle(pin).describe.remote(steps)
            except TimeoutError as error:
                if left <= _SLICE_SECONDS:
                    raise PinAwayError(
                        f"pin {pin}", f"did not answer within {timeout_s:.0f} s", remedy=_SEE_LOG
                    ) from error
    except (RayActorError, ray_serve.exceptions.RayServeException) as error:
        raise ClusterError(f"pin {pin}", "was lost while it loaded its models", remedy=_SEE_LOG) from error
    except BaseException:
        response.cancel()  # the pin need not load for nobody
        raise


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


def _statuses() -> dict[str, StatusOverview]:
    """What Serve says of each application.

    Its public `status()` also rebuilds every deployment's configuration, which costs the asker, who may do nothing but
    wait, hundredths of a second of CPU each.
    """
    client = ray_serve.context._get_global_client(raise_if_no_controller_running=False)
    return {found.name: found for found in client.list_serve_statuses()} if client else {}


def _wait_running(name: str, deadline: float, what: str = "pin") -> None:
    while True:
        application = _statuses().get(name)
        status = application.app_status.status.value if application else "NOT_STARTED"
        if status == "RUNNING":
            return
        if status == "DEPLOY_FAILED" or time.monotonic() > deadline:
            messages = [d.message for d in application.deployment_statuses if d.message] if application else []
            raise ClusterError(
                f"{what} {name}",
                f"did not come up ({status}): {' '.join(messages) or 'no message from Serve'}"[:600],
                remedy="free its share (see `ray status`), lower its num_gpus, or unload what holds the GPU"
                if what == "pin"
                else "see its log in the Ray dashboard",
            )
        time.sleep(_STATUS_SECONDS)
