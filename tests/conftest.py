"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

SoakCount = Callable[[int, int], int]
_COUNTS = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Where soak tests write down what they did."""
    config.stash[_COUNTS] = {}


@pytest.fixture
def soak_count(request: pytest.FixtureRequest) -> SoakCount:
    """`soak_count(reduced, full)`: how many rounds a soak test does, in full when TROUPE_SOAK=full (`make soak`).

    The summary of the run states the number for each test.
    """

    def count(reduced: int, full: int) -> int:
        chosen = full if os.environ.get("TROUPE_SOAK") == "full" else reduced
        request.config.stash[_COUNTS][request.node.nodeid] = f"{chosen} of {full}"
        return chosen

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """States the counts of the soak tests that ran."""
    counts = config.stash[_COUNTS]
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
