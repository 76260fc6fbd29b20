"""`troupe tokens`: who may ask the HTTP service."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cli.manners import exit_codes, print_json
from cluster.errors import UsageError

app = typer.Typer(help="Tokens of the HTTP service.", no_args_is_help=True)

_READABLE_BY_OWNER = 0o600


@app.callback()
def _tokens() -> None:
    """Tokens of the HTTP service."""


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is: owner of its tasks, and in logs.")],
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Append the entry to this tokens file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Make a token; it is shown once, and the tokens file gets its hash alone."""
    with exit_codes():
        from pydantic import ValidationError

        from serve.edge.auth import TokenSettings, new_token

        token, digest = new_token()
        try:
            TokenSettings(name=name, sha256=digest)
        except ValidationError as error:
            raise UsageError(
                f"name {name!r}",
                "cannot be one",
                remedy="take letters and digits, between them also '.', '_', '@', '+' and '-', at most 64",
            ) from error
        entry = yaml.safe_dump([{"name": name, "sha256": digest}], sort_keys=False)
        if file is not None:
            _append(file, name, entry)
    if as_json:
        print_json({"name": name, "token": token, "sha256": digest, "file": None if file is None else str(file)})
        return
    print(token)
    if file is None:
        print(f"\n# for the file that troupe.service.tokens names; `troupe up` makes it known\n{entry}", end="")
    else:
        print(f"\n{file} has its hash; `troupe up` makes it known to the service")


def _append(file: Path, name: str, entry: str) -> None:
    """Appends, in place, so that the file stays its owner's; readable by that owner alone.

    Raises:
        UsageError: it cannot be written, holds no list, or has this name already.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _READABLE_BY_OWNER)
        with os.fdopen(descriptor, "r+", encoding="utf-8") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            before = opened.read()
            more = entry if not before or before.endswith("\n") else f"\n{entry}"
            _check(file, name, before, before + more)
            os.fchmod(opened.fileno(), _READABLE_BY_OWNER)
            opened.write(more)
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        raise UsageError(file, error.strerror or str(error), remedy="give another --file") from error
    except UnicodeDecodeError as error:
        raise UsageError(file, "is not text", remedy="give another --file") from error


def _check(file: Path, name: str, before: str, after: str) -> None:
    try:
        entries, then = yaml.safe_load(before) or [], yaml.safe_load(after)
    except yaml.YAMLError as error:
        raise UsageError(
            file, "is no list of tokens that one more can be appended to", remedy="see docs/http.md"
        ) from error
    if not isinstance(entries, list) or not isinstance(then, list) or len(then) != len(entries) + 1:
        raise UsageError(file, "is no list of tokens", remedy="see docs/http.md")
    if any(isinstance(each, dict) and each.get("name") == name for each in entries):
        raise UsageError(file, f"has a token of {name} already", remedy="remove that entry, or take another name")
