"""Benches of jobs on the Ray that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from cluster.session import Session


@pytest.fixture(scope="package")
def on_local_ray(local_ray: Session) -> Iterator[None]:
    """Benches join the Ray of this process, which holds it, instead of starting one; their pins stay for the next."""
    from ray import serve as ray_serve

    from bench import pins, restage
    from tests.jobs.performing import jobs_on

    with pytest.MonkeyPatch.context() as patch, jobs_on(local_ray):

        def staying_ray(weights: Path) -> nullcontext[int]:
            patch.setenv("TROUPE_WEIGHTS", str(weights))
            return nullcontext(os.getpid())

        for bench in (pins, restage):
            patch.setattr(bench, "staying_ray", staying_ray)
        yield
    for name in {"light-one", "light-upscale", "light-matte"} & set(ray_serve.status().applications):
        ray_serve.delete(name)
