"""What the commands that ask a server have in common."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.service_settings import DEFAULT_SERVER

# Imported where it is needed: what describes the server's answers takes a second, which no `--help` is to wait for.
if TYPE_CHECKING:
    from serve.client import Client

_PANEL = "The server"
_LONGEST_STEM = 200  # bytes; file systems take 255, with ending and id

Server = Annotated[
    str,
    typer.Option("--server", envvar="TROUPE_SERVER", metavar="URL", rich_help_panel=_PANEL, help="Its address."),
]
Token = Annotated[
    str,
    typer.Option(
        "--token",
        envvar="TROUPE_TOKEN",
        metavar="TOKEN",
        rich_help_panel=_PANEL,
        help="Where it asks for one; other users of this machine can see it here, but not in TROUPE_TOKEN.",
    ),
]
Patience = Annotated[
    float,
    typer.Option(
        "--patience",
        metavar="SECONDS",
        min=0,
        rich_help_panel=_PANEL,
        help="How long it may be away, restarting or too busy.",
    ),
]
PATIENCE = 300.0


@contextmanager
def asked(
    server: str, token: str, patience: float = PATIENCE, away: Callable[[str], None] | None = None
) -> Iterator[Client]:
    """A client of the server, which tells `away` why it has to ask again.

    Raises:
        UsageError: the address or the token cannot be one.
    """
    from serve.client import Client

    with Client(server, token, patience_s=patience, away=away) as client:
        yield client


def result_name(name: str) -> str:
    """The file that the result of a video becomes, by the video's name or URL path; never a path itself."""
    stem = PurePosixPath(name.replace("\0", "")).stem.strip(".") or "video"
    return stem.encode()[:_LONGEST_STEM].decode(errors="ignore") + ".mp4"


def how_to_go_on(
    server: str, task_ids: Sequence[str], output: Path | None, environ: Mapping[str, str] = os.environ
) -> str:
    """What whoever was interrupted runs to get the results after all."""
    known = environ.get("TROUPE_SERVER", DEFAULT_SERVER).rstrip("/") == server.rstrip("/")
    where = "" if known else f" --server {shlex.quote(server)}"
    ids = " ".join(task_ids)
    fetch = "" if output is None else f" -o {shlex.quote(str(output))}"
    them = ("go", "them") if len(task_ids) > 1 else ("goes", "it")
    return (
        f"what was submitted {them[0]} on at {server}: `troupe tasks wait {ids}{fetch}{where}` waits for {them[1]}, "
        f"`troupe tasks cancel {ids}{where}` ends {them[1]}"
    )
