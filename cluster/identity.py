"""Hashes that say whether two results can be the same: of source code and of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path


def file_hash(path: Path) -> str:
    """The sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code_hash(*packages: str) -> str:
    """One hash over the Python sources of top-level packages that lie beside `cluster`, file names included.

    A pin and a lane may run from two copies of the code (a submitted job carries its own); equal hashes mean that
    they would compute the same frames.
    """
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in _sources(root / package for package in packages):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(folders: Iterable[Path]) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))
