"""The weights that Troupe knows: `weights.json`, read and checked."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from cluster.errors import UsageError

Url = Annotated[str, Field(pattern=r"^https://")]


class Licence(BaseModel):
    """What a checkpoint may be used for.

    Attributes:
        spdx: SPDX identifier of the licence it is published under, or the licence's own name where SPDX has none.
        settled: False where nobody has said that this licence holds for the weights.
        commercial: False where it forbids commercial use.
        note: where that is known from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    spdx: str
    settled: bool
    commercial: bool = True
    note: str

    def __str__(self) -> str:
        doubts = [] if self.settled else ["unsettled"]
        doubts += [] if self.commercial else ["non-commercial"]
        return f"{self.spdx} ({', '.join(doubts)})" if doubts else self.spdx


class ByHand(BaseModel):
    """How a user gets a file that no program can fetch.

    Attributes:
        page: the address to open in a browser.
        steps: what to do there, up to a file on the disk.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    page: Url
    steps: str


class Entry(BaseModel):
    """One checkpoint: either it has addresses, or it says how it is got by hand.

    Attributes:
        name: what models and users call it.
        file: its name in the store folder: the one it was published under, or one that tells it from the others where
            that is only `model.safetensors`.
        aliases: parts of file names under which the same network goes around in other forms, lower case.
        urls: where it was published, in order of preference.
        by_hand: where there are no `urls`.
        bytes: exact size, None where only an approximate one is known.
        sha256: of the published file; None where nobody is known to have published it.
        md5: of the published file, where that is what is known instead.
        pins: how many unrelated projects were seen to pin that hash.
        licence: see `Licence`.
        purpose: one line for listings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*\.(pth|pt|ckpt|pyth|bin|safetensors|onnx)$")]
    aliases: tuple[str, ...] = ()
    urls: tuple[Url, ...] = ()
    by_hand: ByHand | None = None
    bytes: Annotated[int, Field(gt=0)] | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    pins: Annotated[int, Field(ge=0)]
    licence: Licence
    purpose: str

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if bool(self.urls) == (self.by_hand is not None):
            raise ValueError(f"{self.name}: either urls or by_hand")
        if self.sha256 and self.md5:
            raise ValueError(f"{self.name}: md5 is for files whose sha256 is not known")
        if bool(self.sha256 or self.md5) != bool(self.pins):
            raise ValueError(f"{self.name}: pins count those who pin a hash")
        return self

    @property
    def how_to_get(self) -> str:
        """The command that gets it, or what to do by hand."""
        if self.by_hand is None:
            accept = "" if self.licence.commercial else f" --accept-licence {self.licence.spdx}"
            return f"run `troupe weights fetch {self.name}{accept}`"
        return (
            f"open {self.by_hand.page}, {self.by_hand.steps}, and run "
            f"`troupe weights import {self.file} --name {self.name}`"
        )


class Registry:
    """Entries by name, in the order of the file. Raises `ValueError` when two share a name or a file."""

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self._entries = {entry.name: entry for entry in entries}
        if len(self._entries) < len(entries) or len({entry.file for entry in entries}) < len(entries):
            raise ValueError("two entries of the weights registry share a name or a file")

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def resembling(self, file_name: str) -> Entry | None:
        """The entry whose file's stem, or one of whose aliases, is the longest within the name; None without any."""
        name = file_name.lower()
        found = [
            (len(part), entry)
            for entry in self
            for part in (PurePath(entry.file).stem.lower(), *entry.aliases)
            if part in name
        ]
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def __getitem__(self, name: str) -> Entry:
        """The entry called `name`; raises `UsageError` naming all there are."""
        try:
            return self._entries[name]
        except KeyError:
            raise UsageError(name, "no such weights", remedy=f"there are: {', '.join(self._entries)}") from None


@cache
def official_registry() -> Registry:
    """The registry file of this package."""
    text = files("cluster").joinpath("weights.json").read_bytes()
    return Registry(TypeAdapter(tuple[Entry, ...]).validate_json(text))
