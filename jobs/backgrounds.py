"""The background library: folders of images and videos, each with its source and licence written down."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actors.video import image
from actors.video.background import COLOURS, parse_colour
from actors.video.limits import Limits
from actors.video.scan import inspect
from cluster.errors import UsageError
from cluster.files import sha256_of, written_whole

#: The categories that every library has; further ones are made by making their folder.
CATEGORIES = ("popular", "classic", "folk", "fitness", "taichi")

#: Where the library is unless the user says otherwise, relative to the working directory.
DEFAULT_ROOT = Path("backgrounds")

MANIFEST = "manifest.json"
_NOTES = frozenset({".json", ".txt", ".md"})  # files that may lie beside the items without being one

Text = Annotated[str, Field(min_length=1)]


class Item(BaseModel):
    """One entry of a category's manifest.

    Attributes:
        file: its name in the category's folder.
        source: where it comes from (an address, a person), None when nobody said.
        licence: under which terms it may be used, best as an SPDX identifier; None when nobody said.
        sha256: of the file as it was added.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]
    source: Text | None = None
    licence: Text | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @property
    def licensed(self) -> bool:
        """Whether source and licence are both known."""
        return self.source is not None and self.licence is not None


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    items: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """An item with its place; `listed` is False for a file that lies in the folder and is in no manifest."""

    category: str
    path: Path
    item: Item
    listed: bool


def open_once(path: Path, limits: Limits) -> None:
    """Raises `MediaError` unless the file is an image or a video that opens and shows a first frame."""
    if path.suffix.lower() in image.SUFFIXES:
        image.read_image(path, limits)
    else:
        inspect(path, limits)


class Library:
    """Backgrounds by category: `<root>/<category>/<file>`, described by `<root>/<category>/manifest.json`.

    Args:
        root: need not exist.
        opens: raises `MediaError` for a file that is no picture and no video.
    """

    def __init__(self, root: Path, opens: Callable[[Path], None]) -> None:
        self.root = root.absolute()
        self._opens = opens

    def categories(self) -> tuple[str, ...]:
        """The five that every library has, then those that exist as folders, by name."""
        own = {folder.name for folder in self.root.glob("[!.]*/")} if self.root.is_dir() else set()
        return (*CATEGORIES, *sorted(own - set(CATEGORIES)))

    def list(self, category: str) -> tuple[Listed, ...]:
        """All items of a category by file name, with the files that are in no manifest.

        Raises:
            UsageError: no such category, or its manifest cannot be read or names a file that is gone.
        """
        folder = self._folder(category)
        manifest = {item.file: item for item in self._read(category).items}
        lying = {
            path.name
            for path in (folder.iterdir() if folder.is_dir() else ())
            if path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in _NOTES
        }
        gone = sorted(set(manifest) - lying)
        if gone:
            raise UsageError(
                folder / MANIFEST, f"names {', '.join(gone)}, which the folder has not", remedy="correct the manifest"
            )
        return tuple(
            Listed(category, folder / name, manifest.get(name, Item(file=name)), name in manifest)
            for name in sorted(lying)
        )

    def add(
        self,
        category: str,
        file: Path,
        *,
        source: str | None = None,
        licence: str | None = None,
        allow_unlicensed: bool = False,
    ) -> Listed:
        """Copies a file into a category and writes down what is known of it.

        A file that already lies in the category's folder is written down where it is.

        Raises:
            UsageError: no such file or category, source or licence missing without `allow_unlicensed`, or another
                file has that name.
            MediaError: it is neither an image nor a video.
        """
        folder = self._folder(category)
        if not file.is_file() or file.name.startswith("."):
            raise UsageError(file, "is hidden" if file.is_file() else "not a file")
        item = Item(file=file.name, source=source or None, licence=licence or None)
        if not item.licensed and not allow_unlicensed:
            raise UsageError(
                file.name,
                "its source and licence must be given",
                remedy="add --source and --licence, or --allow-unlicensed if you may use it all the same",
            )
        self._opens(file)
        target = folder / item.file
        digest = sha256_of(file)
        with self._locked(folder):
            if target.exists() and sha256_of(target) != digest:
                raise UsageError(target, "is there and is another file", remedy=f"rename {file.name} before adding it")
            if not target.exists():
                with written_whole(target) as partial:
                    shutil.copyfile(file, partial)
            item = item.model_copy(update={"sha256": digest})
            others = (other for other in self._read(category).items if other.file != item.file)
            manifest = _Manifest(items=tuple(sorted((*others, item), key=lambda one: one.file)))
            with written_whole(folder / MANIFEST) as partial:
                partial.write_text(manifest.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")
        return Listed(category, target, item, listed=True)

    def choose(self, category: str, key: str | bytes, *, allow_unlicensed: bool = False) -> Path:
        """The item of a category that belongs to `key`, e.g. the hash of a clip's content.

        The same key and library always give the same item. Each item gets a score from the key and its file name
        and the highest wins (rendezvous hashing), so that adding an item to n others moves one clip in n + 1.

        Raises:
            UsageError: no such category, an empty one, or one with an item of unknown source or licence.
        """
        items = self.list(category)
        if not items:
            raise UsageError(
                f"background category {category}",
                f"there is nothing in {self._folder(category)}",
                remedy=f"add something: troupe backgrounds add {category} FILE --source WHERE --licence WHICH",
            )
        unlicensed = [listed.path.name for listed in items if not listed.item.licensed]
        if unlicensed and not allow_unlicensed:
            raise UsageError(
                f"background category {category}",
                f"no source and licence are known of {', '.join(unlicensed)}",
                remedy=f"write them down (troupe backgrounds add {category} FILE --source WHERE --licence WHICH), move "
                "the file away, or add --allow-unlicensed",
            )
        salt = key.encode() if isinstance(key, str) else key
        return max(items, key=lambda listed: _score(salt, listed.path.name)).path

    def _folder(self, category: str) -> Path:
        if category not in self.categories():
            raise UsageError(
                f"background category {category!r}",
                f"there is none in {self.root}",
                remedy=f"there are: {', '.join(self.categories())}; make a folder there for another one",
            )
        return self.root / category

    def _read(self, category: str) -> _Manifest:
        path = self.root / category / MANIFEST
        try:
            manifest = _Manifest.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return _Manifest()
        except (OSError, ValidationError) as error:
            reason = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else error.strerror
            raise UsageError(path, f"cannot be read: {reason}", remedy="correct it, or remove it") from error
        return manifest

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Two `add`s at once would each write a manifest without the other's item."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{MANIFEST}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def resolve(spec: str, library: Library, key: str | bytes, *, allow_unlicensed: bool = False) -> str:
    """What `--background` means, as `actors.video.background.open_background` takes it: a colour, or a file's path.

    In this order: a colour (`#rrggbb` or a name), an existing file, a category of the library.

    Raises:
        UsageError: it is none of them (the text lists what there is), or see `Library.choose`.
    """
    if parse_colour(spec) is not None:
        return spec
    if Path(spec).is_file():
        return str(Path(spec).absolute())
    if spec in library.categories():
        return str(library.choose(spec, key, allow_unlicensed=allow_unlicensed))
    raise UsageError(
        f"background {spec!r}",
        "is neither a colour, nor a file, nor a category",
        remedy=f"give #rrggbb, one of {', '.join(COLOURS)}, a file, or a category of {library.root}: "
        f"{', '.join(library.categories())}",
    )


def _score(key: bytes, name: str) -> bytes:
    return hashlib.sha256(len(key).to_bytes(8, "big") + key + name.encode()).digest()
