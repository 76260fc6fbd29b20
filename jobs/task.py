"""A video's task: everything a lane needs to know, as one value that travels to it.

A job (restaging, later lip-sync and others) turns its settings and each input into a `VideoTask`; planning, lanes,
ledger and assembly work on tasks alone and know no job by name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import av

from actors.frames import FrameBatch
from actors.model import Step
from actors.video.encode import EncoderSettings
from actors.video.limits import Limits
from actors.video.scan import Scan

#: Packages whose code computes frames: their hash is a task's `code`.
CODE = ("actors", "jobs")


class Composer(Protocol):
    """Turns a chain's batches into pictures for the encoder."""

    def compose(self, batch: FrameBatch) -> Iterator[av.VideoFrame]:
        """One yuv420p BT.709 limited frame per frame of the batch, in order."""
        ...

    def close(self) -> None:
        """Ends what it opened."""
        ...


class Finish(Protocol):
    """A job's last step, as a picklable value: how composers are made, and what they depend on."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the result, even."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """What lanes read beside the video."""
        ...

    def open(self, scan: Scan) -> Composer:
        """A composer for this video, used by one thread."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """JSON values that change when the pictures would."""
        ...


@dataclass(frozen=True, slots=True)
class Command:
    """What `python -m jobs.NAME` was given, and in which folder."""

    arguments: tuple[str, ...]
    folder: str


@dataclass(frozen=True, slots=True)
class VideoTask:
    """One input on its way to one output.

    Attributes:
        name: the job's name, e.g. `restage`.
        source: the input file.
        source_hash: sha256 of its bytes.
        output: the final file.
        root: the output folder's `.troupe`, where work folders lie.
        steps: the chain, in order.
        finish: what makes pictures of the chain's batches.
        encoder: how they are encoded.
        limits: what the input may be at most.
        companions: further videos decoded beside the source, by plane name (`{"mask": …}`), with their hashes.
        weights: sha256 by weights' name, of all that the steps use.
        code: hash of the code that computes frames.
        pins: what the pins of resident models are set to that changes pixels, by model.
        allow_damaged: count damaged frames instead of refusing the input.
        segment_seconds: longest segment.
        warmup_frames: frames before a segment that starts inside a shot; 0 keeps shots whole.
        settings: the job's settings as JSON values, for the ledger.
        command: the job's arguments and the folder where they were given, so that somebody can ask for it again.
        notices: what the row of this video must say beside what is found while it is made; not in the fingerprint.
    """

    name: str
    source: Path
    source_hash: str
    output: Path
    root: Path
    steps: tuple[Step, ...]
    finish: Finish
    encoder: EncoderSettings
    limits: Limits
    companions: Mapping[str, tuple[Path, str]] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    pins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    allow_damaged: bool = False
    segment_seconds: float = 8
    warmup_frames: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: Command | None = None
    notices: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Changes whenever the output's bytes could: input, chain, weights, code, pins, composition, encoder, plan.

        Of two inputs of equal content each has its own, by the output's place below the folder of results.
        """
        identity = {
            "job": self.name,
            "output": os.path.relpath(self.output, self.root.parent),
            "source": self.source_hash,
            "steps": [asdict(step) for step in self.steps],
            "finish": dict(self.finish.identity()),
            "encoder": asdict(self.encoder),
            "companions": {plane: digest for plane, (_, digest) in self.companions.items()},
            "weights": dict(self.weights),
            "code": self.code,
            "pins": {model: dict(settings) for model, settings in self.pins.items()},
            "damaged": self.allow_damaged,
            "segments": [self.segment_seconds, self.warmup_frames],
        }
        text = json.dumps(identity, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @property
    def folder(self) -> Path:
        """The work folder: plan, segments with their carry, journal."""
        return self.root / self.fingerprint
