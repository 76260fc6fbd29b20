"""Nothing that was started outlives its end, whatever it started itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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


def test_bound_process_dies_with_a_parent_that_is_killed_and_at_once_with_one_that_is_gone() -> None:
    bound = "from cluster.processes import die_with_parent as bind; bind({}); print(os.getpid(), flush=True); {}"
    sleeper = "import os, time; " + bound.format("os.getppid()", "time.sleep(600)")
    orphan = "import os; " + bound.format("os.getppid() + 1", "")
    parent = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {orphan!r}], check=True)
subprocess.run([sys.executable, "-c", {sleeper!r}])
"""
    started = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    child = int(started.stdout.readline())
    started.kill()
    started.communicate()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("it outlived its parent")
