"""The HTTP service as a Serve application: the ingress, and the runners that do what it accepts.

`serve deploy ray-config.yaml` and `troupe up` build it with `serve.app:build`. It keeps to the cluster's head node,
where its data folder is; pins may be anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve as ray_serve

from cluster.config import Config
from cluster.files import sha256_of
from cluster.identity import code_hash
from cluster.pins import told_once
from serve.ingress import SHUTDOWN_SECONDS as INGRESS_SHUTDOWN_SECONDS
from serve.ingress import Ingress
from serve.places import check, data_root, resolved, service_args
from serve.runner import SHUTDOWN_SECONDS as RUNNER_SHUTDOWN_SECONDS
from serve.runner import Runner

#: What Ray calls the head node among its resources; a little of it keeps an actor there.
_HEAD = {"node:__internal_head__": 0.001}
_HEALTH_CHECK_SECONDS = 5.0


@told_once
def build(args: Mapping[str, Any]) -> ray_serve.Application:
    """The application.

    Args:
        args: `http`, `troupe` and `pins` of the configuration; relative paths are this process's.

    Raises:
        UsageError: as `check` and `resolved`.
    """
    given = Config.model_validate(args)
    check(given, os.environ)
    service = given.troupe.service
    data = {"service": service.model_copy(update={"data": str(data_root(service, os.environ))})}
    config = resolved(given.model_copy(update={"troupe": given.troupe.model_copy(update=data)}))
    said, service = service_args(config), config.troupe.service
    # A lane creates no context on the GPU, whose memory belongs to the pins, unless it encodes there.
    hidden = {} if config.troupe.encode.codec != "x264" else {"CUDA_VISIBLE_DEVICES": ""}
    common = {"health_check_period_s": _HEALTH_CHECK_SECONDS}
    actor = {"num_cpus": service.runner_cpus, "resources": _HEAD}
    lane = {**actor, "runtime_env": {"env_vars": hidden}}
    runner = ray_serve.deployment(
        Runner,
        name="Runner",
        num_replicas=service.runners,
        graceful_shutdown_timeout_s=RUNNER_SHUTDOWN_SECONDS,
        ray_actor_options=lane,
        **common,
    )
    express = runner.options(name="ExpressRunner", num_replicas=1)
    ingress = ray_serve.deployment(
        Ingress,
        name="Ingress",
        num_replicas=1,
        # Serve shows it; nobody calls the replica through Serve, and what keeps to the number is `serve.api._AtMost`.
        max_ongoing_requests=service.max_requests,
        graceful_shutdown_timeout_s=INGRESS_SHUTDOWN_SECONDS,
        ray_actor_options=actor,
        **common,
    )
    # As with pins: what is deployed again as it was goes on running.
    tokens = sha256_of(Path(service.tokens)) if service.tokens else ""
    same = [said, tokens, code_hash("actors", "cluster", "jobs", "serve")]
    version = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]
    runner, express, ingress = (each.options(version=version, _internal=True) for each in (runner, express, ingress))
    return ingress.bind(said, runner.bind(said), express.bind(said, True))
