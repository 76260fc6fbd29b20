"""A hash of source code: whether two processes would compute the same frames."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


@cache
def code_hash(*packages: str) -> str:
    """One hash over the Python sources of top-level packages that lie beside `cluster`, file names included.

    A pin and a lane may run from two copies of the code (a submitted job carries its own); equal hashes mean that
    they would compute the same frames.
    """
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for package in packages for path in (root / package).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
