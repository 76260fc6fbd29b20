"""The one configuration: `ray-config.yaml`, a valid Ray Serve file that also holds the pins and the batch defaults.

Each application whose `import_path` is `actors.pin:build` is a pin and its `args` are a `PinSettings`; the one whose
`import_path` is `serve.app:build` is the HTTP service; everything that is not Serve's lives under the top-level key
`troupe`, which Serve ignores. The defaults here and the shipped file say the same, so Troupe also works in a folder
without one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cluster.errors import UsageError
from cluster.service_settings import HttpSettings, ServiceSettings

PIN_IMPORT_PATH = "actors.pin:build"
SERVICE_IMPORT_PATH = "serve.app:build"
CONFIG_NAME = "ray-config.yaml"


class _Frozen(BaseModel):
    """Settings are values: unknown keys are refused, nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GovernorSettings(_Frozen):
    """When new batch work waits, on a machine that others use too; requests never do.

    Attributes:
        max_temperature_c: batch calls wait in a pin while its GPU is hotter, in °C.
        cool_by_c: they go on when it is that much below.
        min_free_gib: lanes take no new frames while the results' disk has less room; 0 never waits.
        free_by_gib: they go on when there is that much more.
    """

    max_temperature_c: float = Field(default=83, ge=40, le=120)
    cool_by_c: float = Field(default=5, ge=1, le=30)
    min_free_gib: float = Field(default=5, ge=0)
    free_by_gib: float = Field(default=1, ge=0)


#: Short side by name, as of `--target`; the long side is 16:9's.
FRAMES = {"480p": 480, "576p": 576, "720p": 720, "1080p": 1080, "1440p": 1440, "4k": 2160}


def frame_size(text: str) -> tuple[int, int]:
    """Width and height of `720p` (portrait; only the number of pixels matters) or `WxH`; ValueError otherwise."""
    if text in FRAMES:
        short = FRAMES[text]
        return short, -(-short * 16 // 9)
    found = re.fullmatch(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})", text)
    if found is None:
        raise ValueError(f"{text!r} is none of {', '.join(FRAMES)} and no WIDTHxHEIGHT")
    return int(found[1]), int(found[2])


class PinSettings(_Frozen):
    """One pin: the models it may host and its share of the machine.

    Attributes:
        name: the Serve application's name; what lanes ask for.
        models: catalogue names of the models that this pin may load.
        num_gpus: share of one GPU; None takes it from the budget (`cluster.budget`), 0 keeps the pin on a CPU, as
            does a machine without a GPU, whatever is written here.
        num_cpus: Ray's bookkeeping for the replica. Small, so that pins and lanes fit on one core.
        frame: largest input that the share is for, `720p` and the like (short side; 16:9 either way) or `WxH`. Larger
            ones run too, in smaller micro-batches or tiles once memory is short.
        replicas: processes that hold the models, each with the share; `per_gpu` starts as many as there are GPUs.
        torch_threads: threads of a pin that runs on a CPU (Ray gives a process one); 0 means every core of the node.
        dtype: arithmetic of the networks; `auto` is fp16 on CUDA and fp32 on a CPU.
        micro_batch: frames a network takes at once on CUDA; always 1 on a CPU.
        tile: largest input side in pixels before an upscaler works in tiles, 0 for never.
        resident: models kept loaded at once; the least recently used one makes room.
        preload: models loaded when the pin starts; the others load on first use.
        idle_unload_s: seconds after which a model that nobody used is unloaded, 0 for never.
        max_call_ms: longest turn of a call, as far as single frames allow; between turns a request goes before batch.
        call_timeout_s: how long one part of a call may take before the pin counts as hung and is replaced.
        governor: when its batch calls wait; a file's pins get what `troupe.governor` says unless they say otherwise.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    models: tuple[str, ...] = Field(min_length=1)
    num_gpus: float | None = Field(default=None, ge=0, le=1)
    frame: str = "720p"
    num_cpus: float = Field(default=0.1, gt=0)
    replicas: Annotated[int, Field(ge=1)] | Literal["per_gpu"] = 1
    torch_threads: int = Field(default=0, ge=0)
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    micro_batch: int = Field(default=4, ge=1)
    tile: int = Field(default=0, ge=0)
    resident: int = Field(default=2, ge=1)
    preload: tuple[str, ...] = ()
    idle_unload_s: float = Field(default=0, ge=0)
    max_call_ms: float = Field(default=500, gt=0)
    call_timeout_s: float = Field(default=600, gt=0)
    governor: GovernorSettings = GovernorSettings()

    @model_validator(mode="after")
    def _preload_is_hosted_and_has_room(self) -> PinSettings:
        unknown = set(self.preload) - set(self.models)
        if unknown:
            raise ValueError(f"preload names models that the pin does not host: {', '.join(sorted(unknown))}")
        if len(self.preload) > self.resident:
            raise ValueError(f"preload names {len(self.preload)} models, and resident is {self.resident}")
        return self

    @field_validator("frame")
    @classmethod
    def _frame_is_a_size(cls, frame: str) -> str:
        frame_size(frame)
        return frame

    @property
    def frame_pixels(self) -> int:
        """Pixels of the largest input that the share is for."""
        width, height = frame_size(self.frame)
        return width * height

    def pixel_settings(self) -> dict[str, Any]:
        """What changes the pixels that this pin returns; lanes compare it with their own configuration."""
        return {"dtype": self.dtype, "micro_batch": self.micro_batch, "tile": self.tile}


class BatchSettings(_Frozen):
    """How a batch job moves frames.

    Attributes:
        lanes: CPU workers, each taking one run from decode to encoded segments; 0 means one per four cores,
            and at least as many as a pin has replicas.
        lane_cpus: Ray's bookkeeping for a lane. Small, so that pins and lanes fit on one core.
        window: batches that a lane keeps moving through its pins.
        batch_mib: largest size of one batch of frames, as it enters or leaves a model.
        batch_frames: most frames in one batch.
        segment_seconds: longest segment, the unit of retry and resume.
        retries: how often a lost call, row or lane is repeated before it counts as failed.
        warmup_frames: frames run through a stateful model before a segment that starts inside a shot (--split-shots).
        decode_threads: threads of the decoder in a lane's child process.
    """

    lanes: int = Field(default=0, ge=0)
    lane_cpus: float = Field(default=0.1, gt=0)
    window: int = Field(default=3, ge=1)
    batch_mib: int = Field(default=32, ge=1)
    batch_frames: int = Field(default=8, ge=1)
    segment_seconds: float = Field(default=8, gt=0)
    retries: int = Field(default=3, ge=0)
    warmup_frames: int = Field(default=16, ge=0)
    decode_threads: int = Field(default=2, ge=1)


class EncodeSettings(_Frozen):
    """How results are encoded.

    Attributes:
        codec: `auto` takes NVENC when a test frame encodes on this machine, else x264; decided once per run.
        threads: x264's threads. x264 is deterministic for a fixed count only, so the count is part of the fingerprint.
        gop_seconds: longest distance between keyframes.
    """

    codec: Literal["auto", "x264", "nvenc"] = "x264"
    threads: int = Field(default=4, ge=1, le=64)
    gop_seconds: float = Field(default=2, gt=0, le=2)


class LimitSettings(_Frozen):
    """What an input may be at most; see `actors.video.limits`."""

    max_gib: float = Field(default=20, gt=0)
    max_hours: float = Field(default=4, gt=0)
    max_megapixels: float = Field(default=36, gt=0)
    max_streams: int = Field(default=32, ge=1)
    max_frames: int = Field(default=2_000_000, ge=1)
    stall_seconds: float = Field(default=60, gt=0)
    memory_gib: float = Field(default=4, gt=0)
    cpu_hours: float = Field(default=12, gt=0)


#: What stands behind the person when nobody chose: the green that editors key out again.
SCREEN_GREEN = "#00b140"


class Preset(_Frozen):
    """A named set of choices for `restage`; every one can be overridden on the command line."""

    upscale: str
    target: str
    matte: str
    background: str = SCREEN_GREEN
    crf: int = Field(ge=0, le=51)
    x264: str


PRESETS: dict[str, Preset] = {
    "draft": Preset(upscale="lanczos", target="720p", matte="chroma", crf=23, x264="veryfast"),
    "balanced": Preset(upscale="realesr-animevideov3", target="1080p", matte="auto", crf=19, x264="fast"),
    "quality": Preset(upscale="realesr-general-x4v3", target="1080p", matte="rvm-resnet50", crf=16, x264="slow"),
}

#: One process for the whole chain: half the memory of a process for each model, and no slower (`bench.pins`).
PINS: tuple[PinSettings, ...] = (
    PinSettings(
        name="restage",
        models=(
            "realesr-animevideov3",
            "realesr-general-x4v3",
            "realesrgan-x4plus",
            "realesrgan-x2plus",
            "realesrgan-x4plus-anime-6b",
            "rvm-mobilenetv3",
            "rvm-resnet50",
            "selfie",
        ),
        # One 720p frame fills a GPU; four at once would need four times the memory and be no faster.
        micro_batch=1,
        resident=4,
    ),
)


class TroupeSettings(_Frozen):
    """The part of the file under `troupe:`."""

    batch: BatchSettings = BatchSettings()
    encode: EncodeSettings = EncodeSettings()
    limits: LimitSettings = LimitSettings()
    governor: GovernorSettings = GovernorSettings()
    service: ServiceSettings = ServiceSettings()
    presets: dict[str, Preset] = Field(default_factory=lambda: dict(PRESETS))

    @model_validator(mode="after")
    def _service_preset_is_there(self) -> TroupeSettings:
        if self.service.preset not in self.presets:
            raise ValueError(f"service.preset {self.service.preset} is not one of {', '.join(self.presets)}")
        return self


class Config(_Frozen):
    """Everything that was configured, validated once.

    Attributes:
        path: the file it came from, None when built from defaults.
        service: the name of the HTTP service's application, None where the file has none.
    """

    path: Path | None = None
    pins: tuple[PinSettings, ...] = PINS
    troupe: TroupeSettings = TroupeSettings()
    http: HttpSettings = HttpSettings()
    service: str | None = "service"

    @field_validator("pins")
    @classmethod
    def _one_home_a_model(cls, pins: tuple[PinSettings, ...]) -> tuple[PinSettings, ...]:
        names = [pin.name for pin in pins]
        models = [model for pin in pins for model in pin.models]
        for kind, values in (("pin", names), ("model", models)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{kind} {', '.join(twice)} appears more than once")
        return pins

    def pin_of(self, model: str) -> PinSettings:
        """The pin that hosts a model.

        Raises:
            UsageError: no pin lists the model.
        """
        for pin in self.pins:
            if model in pin.models:
                return pin
        raise UsageError(
            str(self.path or "the default configuration"),
            f"no pin hosts the model {model}",
            remedy=f"add it to the `models` of an application with import_path {PIN_IMPORT_PATH}",
        )


def load_config(path: Path | None = None) -> Config:
    """Reads the configuration: the given file, else `ray-config.yaml` here, else the defaults.

    Raises:
        UsageError: the file is missing, is not YAML, or does not validate; the text names the key.
    """
    if path is None:
        path = Path(CONFIG_NAME)
        if not path.is_file():
            return Config()
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(path, error.strerror or str(error), remedy="give an existing file to --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(path, f"is not YAML: {error}".replace("\n", " "), remedy="correct that line") from error
    if not isinstance(document, dict):
        raise UsageError(path, "holds no settings", remedy=f"start from the shipped {CONFIG_NAME}")
    applications = document.get("applications") or []
    try:
        troupe = TroupeSettings.model_validate(document.get("troupe") or {})
        defaults = {"governor": troupe.governor}
        pins = tuple(
            PinSettings.model_validate({"name": application.get("name"), **defaults, **(application.get("args") or {})})
            for application in applications
            if application.get("import_path") == PIN_IMPORT_PATH
        )
        services = [each.get("name") for each in applications if each.get("import_path") == SERVICE_IMPORT_PATH]
        if len(services) > 1:
            raise UsageError(path, "has more than one HTTP service", remedy=f"keep one {SERVICE_IMPORT_PATH}")
        http = HttpSettings.model_validate(document.get("http_options") or {})
        return Config(path=path.resolve(), pins=pins, troupe=troupe, http=http, service=(services or [None])[0])
    except (ValidationError, AttributeError, TypeError) as error:
        raise UsageError(path, _first_problem(error), remedy="see docs/configuration.md") from error


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    return f"applications must be a list of mappings ({error})"


def lane_count(settings: BatchSettings, cpus: float, replicas: int = 1) -> int:
    """Lanes to start: the configured number, or one per four cores, and enough for every replica of a pin."""
    return settings.lanes or max(1, int(cpus) // 4, replicas)
