"""The weights that Troupe knows: `weights.json`, read and checked."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from cluster.errors import UsageError


class Licence(BaseModel):
    """What a checkpoint may be used for.

    Attributes:
        spdx: SPDX identifier of the licence it is published under.
        settled: False where nobody has said that this licence holds for the weights.
        note: where that is known from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    spdx: str
    settled: bool
    note: str

    def __str__(self) -> str:
        return self.spdx if self.settled else f"{self.spdx} (unsettled)"


class Entry(BaseModel):
    """One checkpoint.

    Attributes:
        name: what models and users call it.
        file: its name in the store folder, the one it was published under.
        urls: where it was published, in order of preference.
        bytes: exact size, None where only an approximate one is known.
        sha256: of the published file.
        pins: how many unrelated projects were seen to pin that hash.
        licence: see `Licence`.
        purpose: one line for listings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*\.(pth|onnx)$")]
    urls: Annotated[tuple[Annotated[str, Field(pattern=r"^https://")], ...], Field(min_length=1)]
    bytes: Annotated[int, Field(gt=0)] | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    pins: Annotated[int, Field(ge=1)]
    licence: Licence
    purpose: str


class Registry:
    """Entries by name, in the order of the file. Raises `ValueError` when two share a name or a file."""

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self._entries = {entry.name: entry for entry in entries}
        if len(self._entries) < len(entries) or len({entry.file for entry in entries}) < len(entries):
            raise ValueError("two entries of the weights registry share a name or a file")

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

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
