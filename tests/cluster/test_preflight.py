"""What does not fit is refused before anything starts, with the sum."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.config import PINS, BatchSettings, PinSettings
from cluster.errors import ClusterError
from cluster.preflight import check_room
from cluster.session import Session

GIB = 2**30
SMALL = Session(joined=False, cpus=1, gpus=0, object_store_bytes=2 * GIB, submitted=False)


def test_the_defaults_fit_one_cpu_without_a_gpu() -> None:
    check_room(SMALL, BatchSettings(), PINS, lanes=1)


def test_the_defaults_fit_one_gpu() -> None:
    check_room(replace(SMALL, cpus=8, gpus=1), BatchSettings(), PINS, lanes=2)


def test_too_many_lanes_for_the_cpus_are_refused_with_the_sum() -> None:
    with pytest.raises(ClusterError) as refused:
        check_room(SMALL, BatchSettings(), PINS, lanes=9)
    text = str(refused.value)
    assert "pin upscale 0.1 + pin matte 0.1 + 9 lanes 0.9 + planning and assembly 0.2 = 1.3" in text
    assert "more than the 1 that Ray has" in text
    assert "lower troupe.batch.lanes" in text


def test_pins_that_share_a_gpu_they_do_not_fit_are_refused() -> None:
    pins = (PinSettings(name="a", models=("x",), num_gpus=0.6), PinSettings(name="b", models=("y",), num_gpus=0.6))
    with pytest.raises(ClusterError, match=r"GPUs: the pins ask for 1\.2 of 1"):
        check_room(replace(SMALL, gpus=1), BatchSettings(), pins, lanes=1)
    check_room(SMALL, BatchSettings(), pins, lanes=1)  # without a GPU they run on the CPU


def test_every_replica_takes_its_share() -> None:
    pins = (PinSettings(name="a", models=("x",), num_gpus=0.4, replicas=3),)
    with pytest.raises(ClusterError, match=r"the pins ask for 1\.2 of 1"):
        check_room(replace(SMALL, gpus=1), BatchSettings(), pins, lanes=1)


def test_object_store_that_the_window_would_fill_is_refused_with_the_sum() -> None:
    with pytest.raises(ClusterError) as refused:
        check_room(replace(SMALL, object_store_bytes=GIB), BatchSettings(batch_mib=64), PINS, lanes=1)
    assert "1 lanes x 4 batches x 3 hops x 64 MiB = 768 MiB are more than half of its 1024 MiB" in str(refused.value)


def test_a_job_without_pins_needs_no_object_store() -> None:
    check_room(replace(SMALL, object_store_bytes=0), BatchSettings(), (), lanes=1)
