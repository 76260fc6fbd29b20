"""What all commands but the jobs' have in common: errors on stderr and exit codes, machine-readable output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from cluster.errors import Exit, TroupeError


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns Troupe's errors into a line on stderr and the exit code: 2 for a bad request, 1 for what went wrong."""
    try:
        yield
    except TroupeError as error:
        say_error(error)
        raise typer.Exit(Exit.of(error)) from error


def say_error(error: object) -> None:
    """One plain line on stderr; no markup, so that paths with brackets come out as they are."""
    Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout, for machines."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
