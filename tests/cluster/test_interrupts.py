"""Ctrl-C is never lost: it ends the process, and all that it started, at once."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.command import wait_until

ROOT = Path(__file__).resolve().parents[2]


def test_interrupt_before_anything_was_started_ends_the_process_without_a_word() -> None:
    script = "import os, signal\nfrom cluster.interrupts import ending_at_once\n"
    script += "with ending_at_once():\n    os.kill(os.getpid(), signal.SIGINT)\n    print('went on')"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_interrupt_of_a_job_ends_all_that_it_started_even_inside_code_that_swallows_it() -> None:
    script = """
import os, signal, subprocess
from cluster.interrupts import ending_everything
child = subprocess.Popen(["sleep", "600"])
print(child.pid, flush=True)
with ending_everything(lambda: print("farewell", flush=True)):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        pass
    print("went on")
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    child, *said = ended.stdout.split()
    assert (ended.returncode, said) == (130, ["farewell"])
    stat = Path(f"/proc/{child}/stat")

    def has_ended() -> bool:
        try:
            return stat.read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    wait_until(has_ended, "the child to be taken away", 30)


@pytest.mark.parametrize(("mode", "said"), [("lines", ["interrupted"]), ("bars", ["", "\x1b[?25hinterrupted"])])
def test_last_word_is_said_when_the_interrupt_comes_in_the_midst_of_a_line(mode: str, said: list[str]) -> None:
    script = f"""
import os, signal
from rich.console import Console
from cluster.interrupts import ending_everything
from jobs.display import Display

class Interrupting:
    def write(self, text):
        os.kill(os.getpid(), signal.SIGINT)
    def flush(self):
        pass

display = Display({mode!r})
display._console = Console(file=Interrupting())
with ending_everything(lambda: display.last_word("interrupted")):
    display.note("a line")
    print("went on")
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.splitlines()) == (130, said)
