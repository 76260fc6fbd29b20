"""What a process may have open."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "allowed"), [(64, 512, 300, 300), (64, 128, 300, 128), (400, 512, 300, 400)]
)
def test_as_many_files_are_allowed_as_requests_need_and_the_machine_lets(
    soft: int, hard: int, wanted: int, allowed: int
) -> None:
    code = (
        "import resource; from serve.edge.connections import allow_files;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        f"print(allow_files({wanted}), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [str(allowed), str(allowed), str(hard)]
