"""One Ray with one logical GPU and one pin for all tests of this folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apart import TROUPE
from tests.cli.standing.live import Ray, execute


@pytest.fixture(scope="package")
def up() -> Iterator[Ray]:
    """It is up, with a pin that holds 0.6 of a GPU that is only a number."""
    ray = Ray(Path(tempfile.mkdtemp(prefix="troupe-", dir="/tmp")).resolve())  # Ray's sockets have to have short names
    try:
        ray.said = ray.up(ray.config(alpha={"num_gpus": 0.6}), "--num-cpus", "2", "--num-gpus", "1")
        yield ray
    finally:
        execute(ray.folder, *TROUPE, "down")
        shutil.rmtree(ray.folder, ignore_errors=True)
