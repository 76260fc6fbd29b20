"""Which files a job works on, and where each result goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import MediaError, UsageError

#: What lies beside clips without being one. Everything else in a folder is tried, whatever its name says.
SIDECARS = frozenset(
    {".ass", ".bmp", ".db", ".gif", ".ini", ".jpeg", ".jpg", ".json", ".log", ".md", ".nfo", ".parquet", ".pdf"}
    | {".png", ".sha256", ".srt", ".txt", ".vtt", ".webp", ".xml", ".yaml"}
)


@dataclass(frozen=True, slots=True)
class Input:
    """A file and the result that it becomes.

    Attributes:
        path: absolute path of the file.
        output: absolute path of the result.
    """

    path: Path
    output: Path


def collect(paths: Sequence[Path], output: Path) -> tuple[list[Input], list[Path]]:
    """Files to do, folders searched through, and the files in folders that were passed over as sidecars.

    A result is named like its input with `.mp4`, in the same subfolder as below the given folder; two inputs that
    differ only in their ending keep it (`a.mkv.mp4`). Hidden files, mask videos (`<stem>.mask.<ext>`) and everything
    below the output folder are left out.

    Raises:
        UsageError: a path does not exist, there is nothing to do, or a result would replace an input.
    """
    output = output.absolute()
    # Compared where they really are: `..` and symlinks must not hide that a file is an earlier result.
    below = output.resolve()
    found: list[tuple[Path, Path]] = []
    passed: list[Path] = []
    for given in paths:
        path = given.absolute()
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                relative = file.relative_to(path)
                hidden = any(part.startswith(".") for part in relative.parts)
                if hidden or file.is_dir() or below in file.resolve().parents or is_mask(file):
                    continue
                if file.suffix.lower() in SIDECARS or file.name == "Thumbs.db":
                    passed.append(file)
                else:
                    found.append((file, relative))
        elif path.exists() or path.is_symlink():
            found.append((path, Path(path.name)))
        else:
            raise UsageError(given, "does not exist", remedy="check the path")
    unique = dict(found)
    if not unique:
        raise UsageError(", ".join(map(str, paths)), "holds no videos", remedy="give files or a folder with files")
    wanted: dict[Path, list[Path]] = {}
    for path, relative in unique.items():
        wanted.setdefault(output / relative.with_suffix(".mp4"), []).append(path)
    inputs = []
    taken: set[Path] = set()
    sources = {path.resolve() for path in unique}
    for path, relative in unique.items():
        target = output / relative.with_suffix(".mp4")
        if len(wanted[target]) > 1:
            target = output / relative.with_name(relative.name + ".mp4")
        if target in taken:
            raise UsageError(path, f"would become {target} like another input", remedy="rename one, or use two runs")
        if target.resolve() in sources:
            raise UsageError(path, f"its result would replace the input {target}", remedy="choose another -o")
        taken.add(target)
        inputs.append(Input(path, target))
    return inputs, passed


def shown(path: Path) -> str:
    """A path that can be printed and stored: bytes of its name that are not UTF-8 are written as `\\xb8`."""
    return os.fsencode(path).decode(errors="backslashreplace")


def check_name(path: Path) -> None:
    """Raises MediaError for a path that is not UTF-8 (archives from other systems hold such names)."""
    if shown(path) != str(path):
        raise MediaError(
            shown(path), "its name is not UTF-8", remedy="rename it, `convmv -f gbk -t utf-8 --notest` does a folder"
        )


def is_mask(path: Path) -> bool:
    """Whether a file is named as another clip's mask video."""
    return path.stem.endswith(".mask")


def mask_of(path: Path) -> Path | None:
    """The mask video beside a clip, `<stem>.mask.<ext>` with any ending; None when there is none."""
    beside = sorted(path.parent.glob(f"{_glob_safe(path.stem)}.mask.*"))
    return beside[0] if beside else None


def _glob_safe(text: str) -> str:
    from glob import escape

    return escape(text)
