"""Processes that know nothing of the user's caches, tokens and Rays."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: After Python's own name, the `troupe` command.
TROUPE = ("-c", "from cli.main import app; app()")


def environment(folder: Path, **more: str) -> dict[str, str]:
    """What every program needs, with everything of Troupe's and of Ray's in `folder`."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TROUPE_"))}
    return environ | {
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_TMPDIR": str(folder / "ray"),
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",  # ten looks a second are dear where a test waits
        "COLUMNS": "200",
        **more,
    }
