"""The environment of measured processes."""

from __future__ import annotations

import os
import sys

from actors.cpu import CPU_ENVIRONMENT


def run_as_pin(module: str) -> None:
    """Starts this process over, as `python -m module`, with what a pin on a CPU has: bare networks get no less."""
    if not CPU_ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, **CPU_ENVIRONMENT})


def as_users_have() -> dict[str, str]:
    """This process's environment without that, and outside any cluster: for jobs."""
    return {name: value for name, value in os.environ.items() if name not in (*CPU_ENVIRONMENT, "RAY_ADDRESS")}
