"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real clips, weights and golden outputs; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("TROUPE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "goldens").is_dir():
        pytest.skip(f"no reference material at {folder} (set TROUPE_SHARED)")
    return folder
