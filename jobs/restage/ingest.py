"""From an input file to a `VideoTask`: look at it, choose its matte and size, find its background and its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.catalogue import card
from actors.matte import border_screen
from actors.model import Step
from actors.upscale.sizes import output_size
from actors.video.background import parse_colour
from actors.video.beat import Beat, nothing
from actors.video.encode import EncoderSettings
from actors.video.image import SUFFIXES
from actors.video.info import MediaInfo
from actors.video.limits import Limits
from actors.video.scan import inspect, scan
from cluster.config import Config
from cluster.errors import MediaError
from cluster.files import sha256_of
from cluster.identity import code_hash
from cluster.weights import WeightsStore
from jobs.backgrounds import Library, open_once
from jobs.backgrounds import resolve as resolve_background
from jobs.inputs import Input, mask_of
from jobs.limits import limits_of
from jobs.plan import store_scan, stored_scan
from jobs.restage.finish import Restaging
from jobs.restage.settings import (
    LANCZOS,
    MATTE_AUTO,
    MATTE_CHROMA,
    MATTE_FALLBACK,
    MATTE_GIVEN,
    MATTE_NONE,
    RestageSettings,
)
from jobs.task import CODE, VideoTask


@dataclass(frozen=True, slots=True)
class Look:
    """What a first look at an input found.

    Attributes:
        info: of its header.
        screen: `green` or `blue` when its border is one flat colour, else None.
        matte: what fits it.
    """

    info: MediaInfo
    screen: str | None
    matte: str


@dataclass(slots=True)
class Ingest:
    """Makes tasks of inputs, all with the same settings.

    Attributes:
        settings: the user's choices.
        config: segments, encoder, limits.
        root: the output folder's `.troupe`.
        store: where weights lie.
        library: where background categories lie.
        encoder: decided once for the whole run.
        allow_damaged, split_shots: as on the command line.
        allow_unlicensed: take background items without a licence.
        beat: called about once a second while files are hashed or scanned; may raise.
    """

    settings: RestageSettings
    config: Config
    root: Path
    store: WeightsStore
    library: Library
    encoder: EncoderSettings
    allow_damaged: bool = False
    split_shots: bool = False
    allow_unlicensed: bool = False
    beat: Beat = nothing
    _hashes: dict[Path, str] = field(default_factory=dict)

    def look(self, item: Input) -> Look:
        """A first look at an input.

        Raises:
            MediaError: it is refused, or the chosen matte cannot work on it.
        """
        found = inspect(item.path, limits_of(self.config))
        screen = border_screen(found.first)
        return Look(found.info, screen, self._matte(item, screen))

    def check_background(self) -> None:
        """What would fail for every clip is told once, before any is looked at.

        Raises:
            UsageError: it is no colour, file or category, or the category is empty or not licensed.
            MediaError: the file is refused or broken.
        """
        if self.settings.matte != MATTE_NONE and self.settings.background is not None:
            # Any item of a category will do: whether there is one that may be used does not depend on the key.
            chosen = self._background(self.settings.background, "")
            if parse_colour(chosen) is None:
                open_once(Path(chosen).absolute(), limits_of(self.config))

    def missing_weights(self, mattes: Collection[str]) -> list[str]:
        """Names of weights that the upscaler and these mattes need and the store does not have."""
        models = {self.settings.upscale, *mattes} - {LANCZOS, MATTE_NONE}
        return list(self.store.missing([name for model in sorted(models) for name in card(model).weights]))

    def task(self, item: Input, look: Look) -> VideoTask:
        """The task of an input that was looked at.

        Raises:
            MediaError: the background is refused.
            UsageError: the background's category is empty or has no licence, or the size cannot be made.
            WeightsError: weights are missing or damaged.
        """
        settings, matte = self.settings, look.matte
        size = output_size((look.info.width, look.info.height), settings.parsed_target)
        steps = self._steps(look, size)
        digest = self._hash(item.path)
        mask = mask_of(item.path) if matte == MATTE_GIVEN else None
        batch = self.config.troupe.batch
        return VideoTask(
            name="restage",
            source=item.path,
            source_hash=digest,
            output=item.output,
            root=self.root,
            steps=steps,
            finish=self._finish(size, digest, matte),
            encoder=self.encoder,
            limits=limits_of(self.config),
            companions={} if mask is None else {"mask": (mask, self._hash(mask))},
            weights=self._weights(steps),
            code=code_hash(*CODE),
            pins={
                step.model: self.config.pin_of(step.model).pixel_settings()
                for step in steps
                if card(step.model).resident
            },
            allow_damaged=self.allow_damaged,
            segment_seconds=batch.segment_seconds,
            warmup_frames=batch.warmup_frames if self.split_shots else 0,
            settings=settings.model_dump(),
        )

    def _matte(self, item: Input, screen: str | None) -> str:
        wanted = self.settings.matte
        has_mask = mask_of(item.path) is not None
        if wanted == MATTE_AUTO:
            return MATTE_GIVEN if has_mask else MATTE_CHROMA if screen else MATTE_FALLBACK
        if wanted == MATTE_GIVEN and not has_mask:
            raise MediaError(
                item.path.name,
                "has no mask beside it",
                remedy=f"put {item.path.stem}.mask.mp4 there, or choose another --matte",
            )
        if wanted == MATTE_CHROMA and not screen:
            raise MediaError(
                item.path.name,
                "its border is not one flat green or blue, so there is no screen to key out",
                remedy=f"choose a --matte with a network, such as {MATTE_FALLBACK}, or --matte none",
            )
        return wanted

    def _steps(self, look: Look, size: tuple[int, int]) -> tuple[Step, ...]:
        settings = self.settings
        steps = []
        if settings.upscale != LANCZOS:
            load = {} if settings.denoise is None else {"denoise": settings.denoise}
            params = {"size": list(size), "max_input": settings.max_input}
            steps.append(Step(settings.upscale, load, params))
        if look.matte != MATTE_NONE:
            steps.append(Step(look.matte, {}, self._matte_params(look)))
        # `lanczos` is no step: it adds nothing that a matte could use, so the conversion for the encoder does it.
        return tuple(steps)

    def _matte_params(self, look: Look) -> dict[str, Any]:
        if look.matte == MATTE_CHROMA:
            # One screen colour for the whole clip, so that no frame is keyed by the other.
            return {"screen": look.screen}
        return {"long_side": self.settings.long_side} if card(look.matte).stateful else {}

    def _finish(self, size: tuple[int, int], digest: str, matte: str) -> Restaging:
        limits = limits_of(self.config)
        if matte == MATTE_NONE or self.settings.background is None:
            return Restaging(size, None, "", None, limits)
        # By the clip's content, so that reruns choose the same item.
        chosen = self._background(self.settings.background, digest)
        if parse_colour(chosen) is not None:
            return Restaging(size, chosen, chosen, None, limits)
        path = Path(chosen).absolute()
        return Restaging(size, str(path), self._hash(path), self._background_scan(path, limits), limits)

    def _background(self, wanted: str, key: str) -> str:
        """A colour or the path of a file; of a category's items the one that the key chooses."""
        return resolve_background(wanted, self.library, key, allow_unlicensed=self.allow_unlicensed)

    def _background_scan(self, path: Path, limits: Limits) -> Path | None:
        """The stored scan of a background video, made when it is used first; None for an image."""
        if path.suffix.lower() in SUFFIXES:
            return None
        stored = self.root / "backgrounds" / self._hash(path)[:20] / "scan.npz"
        if stored_scan(stored, path) is None:
            stored.parent.mkdir(parents=True, exist_ok=True)
            store_scan(stored, scan(path, limits, workdir=stored.parent, beat=self.beat))
        return stored

    def _weights(self, steps: tuple[Step, ...]) -> Mapping[str, str]:
        names = [name for step in steps for name in card(step.model).weights]
        return {name: self.store.find(name).sha256 for name in names}

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256_of(path, self.beat)
        return self._hashes[path]
