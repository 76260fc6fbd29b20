"""The weights store: a folder of checkpoints, each known by its registry name and its SHA-256."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import UsageError, WeightsError
from cluster.filehash import HashMemory
from cluster.files import sha256_of, written_whole
from cluster.registry import Entry, Registry, official_registry

if TYPE_CHECKING:
    from cluster.download import Patience

Progress = Callable[[str, int, int | None], None]
"""Called with a registry name, the bytes that are there, and the bytes expected (None while unknown)."""

_GITHUB = "https://github.com/"
#: Ends of the names of PyTorch's files, which are one format.
_PICKLED = (".pth", ".pt", ".ckpt", ".pyth", ".bin")


class State(StrEnum):
    """What the store has under a name.

    UNVERIFIED is a file of which nobody is known to have published the SHA-256: the one it had when it came is what it
    is checked against.
    """

    OFFICIAL = "official"
    UNVERIFIED = "unverified"
    UNOFFICIAL = "unofficial"
    MISSING = "missing"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A checkpoint on the disk. `official` is True when its hash is the registered one."""

    name: str
    path: Path
    sha256: str
    official: bool


@dataclass(frozen=True, slots=True)
class Status:
    """What the store has for one entry; `stored` is None when the file is missing or damaged."""

    entry: Entry
    state: State
    stored: StoredWeight | None
    detail: str = ""


class Imported(BaseModel):
    """The record beside a file that is not known to be the official one (`<file>.json`).

    Attributes:
        source: the name of the file that was imported, or the address that was asked.
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    sha256: str
    source: str
    imported_at: datetime


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Troupe's folder in the user's cache (XDG base directories)."""
    home = environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "troupe"


def default_folder(environ: Mapping[str, str]) -> Path:
    """Where weights are kept: `TROUPE_WEIGHTS`, or `weights` in the user's cache."""
    chosen = environ.get("TROUPE_WEIGHTS", "")
    return Path(chosen).expanduser() if chosen else cache_folder(environ) / "weights"


def default_store(environ: Mapping[str, str]) -> WeightsStore:
    """The store that the environment asks for, remembering hashes in the user's cache."""
    return WeightsStore(default_folder(environ), HashMemory(cache_folder(environ) / "hashes.json"))


class WeightsStore:
    """Checkpoints in one folder, under the file names they were published with.

    A file of a registered name that somebody else put there, even into a read-only folder, is found like any other;
    it is unofficial when its hash is not the registered one.

    Args:
        folder: need not exist.
        memory: where hashes are remembered; by default they are computed each time.
        registry: by default the package's.
    """

    def __init__(self, folder: Path, memory: HashMemory | None = None, registry: Registry | None = None) -> None:
        self.folder = folder.absolute()
        self.registry = registry or official_registry()
        self._memory = memory or HashMemory(None)

    def find(self, name: str) -> StoredWeight:
        """The checkpoint called `name`.

        Raises:
            UsageError: no such name.
            WeightsError: it is not in the store, or no longer what was imported; says the command that gets it.
        """
        status = self.status(name)
        if status.stored is None:
            raise WeightsError(name, status.detail, remedy=_how_to_get(status))
        return status.stored

    def missing(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of `names` that `find` would refuse, each once, in their order."""
        return tuple(name for name in dict.fromkeys(names) if self.status(name).stored is None)

    def status(self, name: str) -> Status:
        """What the store has under `name`; raises `UsageError` for an unknown one."""
        return self._status(self.registry[name], self._memory.sha256)

    def list(self) -> tuple[Status, ...]:
        """The status of every registered name."""
        return tuple(self._status(entry, self._memory.sha256) for entry in self.registry)

    def verify(self) -> tuple[Status, ...]:
        """As `list`, for what is there, with every byte read again."""
        statuses = (self._status(entry, sha256_of) for entry in self.registry)
        return tuple(status for status in statuses if status.state is not State.MISSING)

    def fetch(
        self,
        names: Iterable[str],
        *,
        mirror: str | None = None,
        accepted: Collection[str] = (),
        force: bool = False,
        progress: Progress | None = None,
        patience: Patience | None = None,
    ) -> tuple[StoredWeight, ...]:
        """Downloads official files that are not in the store yet; see `cluster.download.download`.

        Where no SHA-256 is registered, the hash of what comes is recorded beside the file, and stays what it is
        checked against.

        Args:
            mirror: see `mirrored`; only the mirror is asked then.
            accepted: names of licences that forbid commercial use and were accepted all the same.
            force: replaces an unofficial, unverified or damaged file by the official one.

        Raises:
            UsageError: no such name, or a mirror that is no HTTP address.
            WeightsError: the licence was not accepted, the file is only to be had by hand, another one is in the way,
                or the download failed.
        """
        wanted = [self.status(name) for name in dict.fromkeys(names)]
        return tuple(self._fetch_one(status, mirror, accepted, force, progress, patience) for status in wanted)

    def _fetch_one(
        self,
        status: Status,
        mirror: str | None,
        accepted: Collection[str],
        force: bool,
        progress: Progress | None,
        patience: Patience | None,
    ) -> StoredWeight:
        entry, target = status.entry, self.folder / status.entry.file
        urls = tuple(mirrored(url, mirror) for url in entry.urls)
        trusted = status.state is State.OFFICIAL or (status.state is State.UNVERIFIED and not force)
        if trusted and status.stored is not None:
            return status.stored
        if entry.by_hand is not None:
            raise WeightsError(entry.name, "is published where only a browser gets it", remedy=entry.how_to_get)
        if not entry.licence.commercial and entry.licence.spdx not in accepted:
            raise WeightsError(
                entry.name,
                f"its licence, {entry.licence.spdx}, forbids commercial use ({entry.licence.note})",
                remedy=f"if that suits you, add --accept-licence {entry.licence.spdx}",
            )
        if status.state is not State.MISSING and not force:
            raise WeightsError(
                entry.name,
                f"{target} is there and is not the official file",
                remedy="add --force to replace it",
            )
        from cluster.download import Wanted, download  # which waits for aiohttp; whoever only looks need not

        report = None if progress is None else (lambda done, total: progress(entry.name, done, total))
        wanted = Wanted(entry.name, urls, entry.bytes, entry.sha256, entry.md5)
        download(wanted, target, progress=report, patience=patience)
        _sidecar(target).unlink(missing_ok=True)
        if entry.sha256 is not None:
            return StoredWeight(entry.name, target, entry.sha256, official=True)
        digest = sha256_of(target)
        _record(target, Imported(name=entry.name, sha256=digest, source=urls[0], imported_at=datetime.now(UTC)))
        return StoredWeight(entry.name, target, digest, official=False)

    def import_file(self, path: Path, name: str | None = None, *, force: bool = False) -> StoredWeight:
        """Copies a checkpoint from the disk into the store.

        It is taken for `name`; without one, for the entry with its hash, else for the one with its file name. A file
        that is not the official one gets a record of its own hash, against which `verify` and `find` check it.

        Raises:
            UsageError: not a file, or which checkpoint it is cannot be told.
            WeightsError: another file is in its place (without `force`), or the store cannot be written.
        """
        if not path.is_file():
            raise UsageError(path, "not a file")
        digest = sha256_of(path)
        entry = self._recognise(path, digest, name)
        target, official = self.folder / entry.file, digest == entry.sha256
        if target.exists() and not force and sha256_of(target) != digest:
            raise WeightsError(entry.name, f"{target} is there and is another file", remedy="add --force to replace it")
        record = Imported(name=entry.name, sha256=digest, source=path.name, imported_at=datetime.now(UTC))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _sidecar(target).unlink(missing_ok=True)  # first: an old record beside the new file would call it damaged
            _copy_checked(path, target, digest)
            if not official:
                _record(target, record)
        except OSError as error:
            raise WeightsError(
                entry.name,
                f"cannot write {target}: {error.strerror or error}",
                remedy="choose another folder with --store or TROUPE_WEIGHTS",
            ) from error
        return StoredWeight(entry.name, target, digest, official)

    def _recognise(self, path: Path, digest: str, name: str | None) -> Entry:
        if name is not None:
            entry = self.registry[name]
        else:
            same_hash = (entry for entry in self.registry if entry.sha256 == digest)
            stem = path.stem.lower()
            same_name = (e for e in self.registry if stem in (e.name, Path(e.file).stem.lower()))
            found = next(same_hash, None) or next(same_name, None)
            if found is None:
                raise UsageError(
                    path.name,
                    f"neither its name nor its sha256 ({digest}) is a registered one",
                    remedy=f"say what it is with --name, one of: {', '.join(e.name for e in self.registry)}",
                )
            entry = found
        kinds = _PICKLED if entry.file.endswith(_PICKLED) else (Path(entry.file).suffix,)
        if path.suffix.lower() not in kinds:
            raise UsageError(path.name, f"{entry.name} is kept as {' or '.join(kinds)}, not as {path.suffix or 'this'}")
        return entry

    def _status(self, entry: Entry, hashed: Callable[[Path], str]) -> Status:
        path = self.folder / entry.file
        try:
            digest = hashed(path)
        except (FileNotFoundError, NotADirectoryError):
            return Status(entry, State.MISSING, None, f"{entry.file} is not in {self.folder}")
        except OSError as error:
            return Status(entry, State.DAMAGED, None, f"{path} cannot be read: {error.strerror or error}")
        if digest == entry.sha256:
            return Status(entry, State.OFFICIAL, StoredWeight(entry.name, path, digest, official=True))
        recorded = _read_sidecar(path)
        if recorded is not None and recorded != digest:
            return Status(entry, State.DAMAGED, None, f"{path} has sha256 {digest}, was imported with {recorded}")
        stored = StoredWeight(entry.name, path, digest, official=False)
        if entry.sha256 is None:
            known = "the one recorded when it came" if recorded else "recorded nowhere"
            return Status(entry, State.UNVERIFIED, stored, f"nobody published its sha256; {digest} is {known}")
        detail = "imported, not the published file" if recorded else "not the published file, and never imported"
        return Status(entry, State.UNOFFICIAL, stored, detail)


def mirrored(url: str, mirror: str | None) -> str:
    """The address of `url` at a mirror.

    A mirror is written as its address, before which the whole URL goes (`https://mirror.example/` gives
    `https://mirror.example/https://github.com/…`), or with `{url}` or `{path}` where the whole URL, or what follows
    `https://github.com/`, belongs (`https://mirror.example/gh/{path}`). A mirror with `{path}` is one of GitHub: other
    addresses stay what they are.

    Raises:
        UsageError: the mirror is not an HTTP address.
    """
    if not mirror:
        return url
    if not mirror.startswith(("https://", "http://")):
        raise UsageError(mirror, "a mirror is an http:// or https:// address", remedy="e.g. https://mirror.example/")
    if "{path}" in mirror:
        return mirror.replace("{path}", url.removeprefix(_GITHUB)) if url.startswith(_GITHUB) else url
    if "{url}" in mirror:
        return mirror.replace("{url}", url)
    return f"{mirror.rstrip('/')}/{url}"


def _how_to_get(status: Status) -> str:
    entry = status.entry
    if entry.by_hand is not None:
        return entry.how_to_get
    how = entry.how_to_get.removesuffix("`") + " --force`" if status.state is State.DAMAGED else entry.how_to_get
    return f"{how}, or `troupe weights import FILE --name {entry.name}` for a copy of {entry.file} that you have"


def _record(path: Path, record: Imported) -> None:
    with written_whole(_sidecar(path)) as partial:
        partial.write_text(record.model_dump_json(indent=2))


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_sidecar(path: Path) -> str | None:
    """The hash recorded at import, None without a record; an unreadable record counts as a mismatch."""
    try:
        return Imported.model_validate_json(_sidecar(path).read_bytes()).sha256
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        return "an unreadable record"


def _copy_checked(source: Path, target: Path, digest: str) -> None:
    """Copies to `target`, which appears whole, and only if the copy has the hash that was recognised."""
    with written_whole(target) as partial:
        shutil.copyfile(source, partial)
        if sha256_of(partial) != digest:
            raise WeightsError(source.name, "changed while it was copied", remedy="import it again")
