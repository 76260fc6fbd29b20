"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis  # noqa: F401 - here, because pytest would import it at the end, among threads that format tracebacks
import pytest

if TYPE_CHECKING:
    from cluster.session import Session

# For this process and all that tests start, read when torch is imported. More threads gain nothing on small networks,
# spin where the cores are taken, and make some CPUs add in another order.
os.environ["OMP_NUM_THREADS"] = "1"

SoakCount = Callable[[int, int], int]
_SOAK = "soak count"


@pytest.hookimpl(tryfirst=True)  # before `-m ray` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that share the Ray of this session count as `ray` too."""
    for item in items:
        if "local_ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests and the commands that they run do not use the cache of the user, nor join the Ray that `troupe up` left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def soak_count(request: pytest.FixtureRequest) -> SoakCount:
    """`soak_count(reduced, full)`: how many rounds a soak test does, in full when TROUPE_SOAK=full (`make soak`).

    None of them skips the test. The summary of the run states the number for each test.
    """

    def count(reduced: int, full: int) -> int:
        chosen = full if os.environ.get("TROUPE_SOAK") == "full" else reduced
        request.node.user_properties.append((_SOAK, f"{chosen} of {full}"))
        return chosen

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """States the counts of the soak tests that ran."""
    reports = [report for kind in ("passed", "failed", "skipped") for report in terminalreporter.stats.get(kind, ())]
    counts = {report.nodeid: value for report in reports for name, value in report.user_properties if name == _SOAK}
    if counts:
        terminalreporter.section("soak counts (`make soak` does all)")
        for test, count in counts.items():
            terminalreporter.line(f"{test}: {count}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real clips, weights and golden outputs; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("TROUPE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "goldens").is_dir():
        pytest.skip(f"no reference material at {folder} (set TROUPE_SHARED)")
    return folder


@pytest.fixture
def test_models() -> Iterator[None]:
    """The models of `tests.models` in this process's catalogue, for one test."""
    from tests.models import with_test_models

    with with_test_models():
        yield


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights store of small random networks under the registry's file names, for the real loaders.

    RVM has one size for each encoder; on frames of a few pixels it is fast all the same.
    """
    import torch

    from actors.networks.rvm import MattingNetwork
    from actors.networks.srvgg import SRVGGNetCompact

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(11)
    for name in ("realesr-animevideov3", "realesr-general-x4v3", "realesr-general-wdn-x4v3"):
        torch.save(SRVGGNetCompact(features=8, convs=2, scale=4).state_dict(), folder / f"{name}.pth")
    torch.save(MattingNetwork("mobilenetv3").state_dict(), folder / "rvm_mobilenetv3.pth")
    return folder


@pytest.fixture(scope="session")
def local_ray(tiny_weights: Path) -> Iterator[Session]:
    """One local Ray for all tests of a session: two CPUs, a store for default windows, tiny weights, the test models.

    Serve and the pins that tests deploy stay up until its end; pins of tests have names of their own.
    """
    import ray

    from cluster.session import FREE_OBJECTS, Session
    from tests.models import install

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        patch.setenv("TROUPE_WEIGHTS", str(tiny_weights))
        # Calls that tests cancel or let fail are nobody's to look at.
        patch.setenv("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
        # Looks of Serve at its replicas, and reports of tasks that nobody reads (below), cost percents of a core.
        patch.setenv("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=0,
            object_store_memory=768 * 2**20,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            runtime_env={"worker_process_setup_hook": install},
            # Workers that are started ahead have none of this environment, so nobody takes them. Those that have ended
            # their task wait for that of the next test: a new one imports for a second.
            _system_config={
                **FREE_OBJECTS,
                "prestart_worker_first_driver": False,
                "task_events_report_interval_ms": 0,
                "idle_worker_killing_time_threshold_ms": 10 * 60 * 1000,
            },
        )
        found = ray.cluster_resources()
        yield Session(
            joined=False,
            cpus=found["CPU"],
            gpus=0,
            object_store_bytes=int(found["object_store_memory"]),
            submitted=False,
        )
        ray.shutdown()


@pytest.fixture(scope="session")
def pins(local_ray: Session) -> None:  # noqa: ARG001 - it must be up
    """The pins of `tests.pins`, up."""
    from actors.pin import build
    from cluster.pins import ensure_pins
    from tests.pins import FIRST, SECOND

    ensure_pins((FIRST, SECOND), build)


@pytest.fixture(scope="session")
def joining(local_ray: Session) -> dict[str, str]:  # noqa: ARG001 - it must be up
    """Environment in which a command joins that Ray instead of starting one."""
    import ray

    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
