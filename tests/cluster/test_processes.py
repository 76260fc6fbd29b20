"""Nothing that was started outlives its end, whatever it started itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_children_and_theirs_are_ended_and_nobody_else() -> None:
    script = """
import subprocess, sys
from cluster.processes import end_descendants
shell = "sleep 600 & setsid sleep 600 & echo started; wait"
tree = [subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE) for _ in range(2)]
for each in tree:
    each.stdout.readline()
print(end_descendants(), [each.wait() for each in tree], end_descendants())
"""
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        ended = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
        assert ended.stdout == "6 [-9, -9] 0\n"
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
