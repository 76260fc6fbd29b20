"""What models take of a card, measured or estimated: one JSON file a card, the shipped one for a card nobody measured.

`troupe profile` writes `profiles/<card>.json` in the cache folder; `profiles.json` beside this module holds estimates
for the reference card. Bytes hardly differ between cards, so the estimates serve for any; seconds do differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import UsageError
from cluster.files import written_whole
from cluster.weights import cache_folder

#: Bytes of a number, by the name of the arithmetic: what is not measured is scaled by them.
DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


class Figure(BaseModel):
    """One model in one setting.

    Attributes:
        model: its catalogue name.
        dtype: arithmetic.
        width, height: of the frames that go in.
        micro_batch: frames a network call takes at once.
        tile: as in `PinSettings.tile`.
        load_s: seconds to load it, None where only estimated, as `ms`.
        resident_mib: what it takes between calls.
        peak_mib: what it takes at most during a call, `resident_mib` included.
        ms: milliseconds a frame.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str
    dtype: str
    width: int
    height: int
    micro_batch: int
    tile: int
    load_s: float | None = None
    resident_mib: float
    peak_mib: float
    ms: float | None = None

    @property
    def setting(self) -> tuple[str, str, int, int, int, int]:
        """What was measured; a second measurement of it replaces the first."""
        return self.model, self.dtype, self.width, self.height, self.micro_batch, self.tile

    @property
    def pixels(self) -> int:
        """Of a frame."""
        return self.width * self.height

    @property
    def activation_mib(self) -> float:
        """What a call takes beside the weights."""
        return max(0.0, self.peak_mib - self.resident_mib)


class Profile(BaseModel):
    """All that is known about models on one card.

    Attributes:
        device: the card's name as the driver tells it, or the CPU's.
        total_mib: memory that processes can have of it.
        context_mib: what a process takes before its first tensor.
        estimated: True when nothing was measured on such a card.
        note: how the figures came about.
        figures: of models.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    device: str
    total_mib: int
    context_mib: int
    estimated: bool
    note: str = ""
    figures: tuple[Figure, ...] = ()

    def with_figures(self, measured: Iterable[Figure]) -> Profile:
        """This profile with measurements added; those of the same setting are replaced."""
        merged = {figure.setting: figure for figure in (*self.figures, *measured)}
        return self.model_copy(update={"figures": tuple(merged[key] for key in sorted(merged))})


@dataclass(frozen=True, slots=True)
class Memory:
    """What a model takes, in MiB.

    Attributes:
        resident: between calls.
        activation: during a call, beside `resident`.
        estimated: True when it was not measured on this card.
    """

    resident: float
    activation: float
    estimated: bool


class Figures:
    """Answers what a model takes in a setting, from the measured profile if it knows the model, else from estimates.

    Args:
        profiles: in order of preference.
    """

    def __init__(self, profiles: Sequence[Profile]) -> None:
        self._profiles = tuple(profiles)

    @property
    def context_mib(self) -> int:
        """What a process takes of the card before its first tensor."""
        return self._profiles[0].context_mib

    def memory(self, model: str, dtype: str, pixels: int, micro_batch: int, tile: int) -> Memory | None:
        """What the model takes for frames of so many pixels; None when no profile knows it.

        What was not measured is taken from the nearest figure that cannot be too small: activations grow at most with
        the frame's pixels, with the micro-batch, with the bytes of a number and with the tile; where a setting asks for
        less than the figure's, the figure stands as it is.
        """
        known = [
            (index, figure)
            for index, profile in enumerate(self._profiles)
            for figure in profile.figures
            if figure.model == model and (figure.tile == 0 or 0 < tile <= figure.tile)
        ]
        if not known:
            return None
        index, nearest = min(known, key=lambda pair: _distance(pair[0], pair[1], dtype, pixels, micro_batch, tile))
        ratio = DTYPE_BYTES[dtype] / DTYPE_BYTES[nearest.dtype]
        frames = max(1.0, pixels / nearest.pixels) * max(1.0, micro_batch / nearest.micro_batch)
        # The share is for smaller frames too, and a frame that divides badly into tiles takes more than a larger one.
        alike = (f for i, f in known if i == index and _kind(f) == _kind(nearest) and f.pixels <= nearest.pixels)
        activation = max(figure.activation_mib for figure in alike)
        return Memory(nearest.resident_mib * ratio, activation * ratio * frames, self._profiles[index].estimated)

    def tiles(self, model: str) -> tuple[int, ...]:
        """Tile sizes with figures of their own, largest first."""
        known = (figure for profile in self._profiles for figure in profile.figures if figure.model == model)
        return tuple(sorted({figure.tile for figure in known if figure.tile}, reverse=True))


def _kind(figure: Figure) -> tuple[str, int, int]:
    return figure.dtype, figure.micro_batch, figure.tile


def _distance(index: int, figure: Figure, dtype: str, pixels: int, micro_batch: int, tile: int) -> tuple[float, ...]:
    """How far a figure is from a setting, the difference that counts most first; what need not be scaled is nearer."""
    return (
        figure.tile - tile if figure.tile else float("inf") if tile else 0.0,
        index,
        DTYPE_BYTES[figure.dtype] != DTYPE_BYTES[dtype],
        figure.pixels < pixels,
        abs(figure.pixels - pixels),
        figure.micro_batch > micro_batch,
        abs(figure.micro_batch - micro_batch),
    )


@cache
def shipped_profile() -> Profile:
    """The estimates for the reference card, an `NVIDIA GeForce RTX 3060` with 12 GB."""
    return Profile.model_validate_json(files("cluster").joinpath("profiles.json").read_bytes())


def profile_path(environ: Mapping[str, str], device: str) -> Path:
    """Where the measurements of a card are kept."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "unnamed"
    return cache_folder(environ) / "profiles" / f"{slug}.json"


def read_profile(environ: Mapping[str, str], device: str) -> Profile | None:
    """What was measured on a card, None if nothing was.

    Raises:
        UsageError: the file is there and is no profile.
    """
    path = profile_path(environ, device)
    try:
        return Profile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise UsageError(
            path, f"is no profile ({type(error).__name__})", remedy="remove it, then `troupe profile`"
        ) from (error)


def write_profile(environ: Mapping[str, str], profile: Profile) -> Path:
    """Keeps a profile, whole or not at all; returns where."""
    path = profile_path(environ, profile.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(profile.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return path


def figures_for(device: str, environ: Mapping[str, str]) -> Figures:
    """Measurements of this card where there are any, the estimates for the rest."""
    measured = read_profile(environ, device)
    return Figures([shipped_profile()] if measured is None else [measured, shipped_profile()])
