"""`troupe retry`: gives quarantined segments another try, by running the commands that made them once more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import Exit, TroupeError
from jobs import options
from jobs.display import Display
from jobs.ledger import WorkFolder, output_lock, read_rows

#: A job that a signal ended, in the way of shells.
_SIGNALLED = 128


def retry(
    output: Annotated[Path, typer.Argument(help="The folder of results.")] = options.DEFAULT_OUTPUT,
    only_list: Annotated[bool, typer.Option("--list", help="Show what is quarantined, and do nothing.")] = False,
) -> None:
    """Try again what is quarantined: segments that pins died of three times."""
    display = Display.choose(as_json=False)
    root = output.absolute() / ".troupe"
    try:
        rows = list(_quarantined(root))
        for row in rows:
            for strike in json.loads(row["quarantined"]):
                frames = f"frames {strike['first']}-{strike['last'] - 1}"
                display.note(f"{row['input']}: segment {strike['segment']} ({frames}): {strike['reason']}")
        if not rows:
            display.note(f"nothing is quarantined in {output}")
        if only_list or not rows:
            raise typer.Exit(Exit.DONE)
        with output_lock(root):
            for row in rows:
                WorkFolder(root / row["fingerprint"]).forget_strikes()
    except TroupeError as error:
        display.failed("", str(error))
        raise typer.Exit(Exit.of(error)) from error
    codes = [
        _run(job, command, display) for job, command in dict.fromkeys((row["job"], row["command"]) for row in rows)
    ]
    raise typer.Exit(max(codes))


def _quarantined(root: Path) -> Iterator[dict[str, Any]]:
    for row in read_rows(root):
        if row["status"] == "failed" and json.loads(row.get("quarantined") or "[]"):
            yield row


def _run(job: str, command: str, display: Display) -> int:
    """Runs one command as it was given; its exit code."""
    given = json.loads(command)
    # What is finished stays finished.
    arguments = [argument for argument in given["arguments"] if argument != "--force"]
    folder = Path(given["folder"])
    if not folder.is_dir():
        # A submitted job ran in a copy on the cluster, with absolute paths.
        display.note(f"{folder} is gone: the command is run here")
        folder = Path.cwd()
    code = subprocess.run([sys.executable, "-m", f"jobs.{job}", *arguments], cwd=folder, check=False).returncode
    return code if code >= 0 else _SIGNALLED - code
