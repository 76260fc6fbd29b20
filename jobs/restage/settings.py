"""What a user chooses for a restaging, completed by a preset."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from actors.catalogue import CARDS, card
from actors.upscale.sizes import Target, parse_target
from cluster.config import Config
from cluster.errors import UsageError

LANCZOS = "lanczos"
MATTE_AUTO = "auto"
MATTE_NONE = "none"
MATTE_GIVEN = "given"
MATTE_CHROMA = "chroma"
#: What `auto` takes when there is neither a mask beside the clip nor a flat screen behind the person.
MATTE_FALLBACK = "rvm-mobilenetv3"


class RestageSettings(BaseModel):
    """One restaging's choices, complete and validated; JSON values, so that they can be stored with the result.

    Attributes:
        upscale: `lanczos` or a model of the upscale family.
        target: `720p`, `1080p`, `1440p`, `4k` (the short side), `WxH`, or a factor.
        matte: `auto`, `none`, or a model of the matte family.
        background: a colour, a file, a category of the background library; None only with matte `none`.
        crf: constant quality, lower is better.
        x264: x264's preset.
        denoise: strength 0..1, for models that have it.
        max_input: largest short side that enters the upscaler; larger clips are reduced first.
        long_side: long side of the frame that a recurrent matting network looks at.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str
    upscale: str
    target: str
    matte: str
    background: str | None = None
    crf: int = Field(ge=0, le=51)
    x264: str
    denoise: float | None = Field(default=None, ge=0, le=1)
    max_input: int | None = Field(default=None, ge=16)
    long_side: int = Field(default=768, ge=64)

    @property
    def parsed_target(self) -> Target:
        """The target as a value."""
        return parse_target(self.target)


def resolve(config: Config, preset: str, **chosen: Any) -> RestageSettings:
    """A preset with the user's choices over it.

    Args:
        config: holds the presets.
        preset: one of their names.
        chosen: fields of `RestageSettings`; None means not chosen.

    Raises:
        UsageError: an unknown preset or model, or choices that contradict each other.
    """
    presets = config.troupe.presets
    if preset not in presets:
        raise UsageError(f"preset {preset}", "does not exist", remedy=f"choose one of {', '.join(presets)}")
    fields = {
        **presets[preset].model_dump(),
        **{name: value for name, value in chosen.items() if value is not None},
        "preset": preset,
    }
    if fields["matte"] == MATTE_NONE and chosen.get("background") is None:
        fields["background"] = None
    settings = RestageSettings.model_validate(fields)
    _check_model("upscale", settings.upscale, (LANCZOS,))
    _check_model("matte", settings.matte, (MATTE_AUTO, MATTE_NONE))
    settings.parsed_target  # noqa: B018 - raises for nonsense
    if settings.matte == MATTE_NONE and settings.background is not None:
        raise UsageError(
            "--matte none", "cuts nobody out, so the background would never show", remedy="leave --background away"
        )
    denoising = settings.upscale == "realesr-general-x4v3"
    if settings.denoise is not None and not denoising:
        raise UsageError(
            f"--denoise with {settings.upscale}", "has no effect", remedy="use --upscale realesr-general-x4v3"
        )
    if settings.max_input is not None and settings.upscale == LANCZOS:
        raise UsageError("--max-input with lanczos", "has no effect", remedy="choose a smaller --target instead")
    return settings


def _check_model(family: str, name: str, extra: tuple[str, ...]) -> None:
    if name in extra:
        return
    if name not in CARDS or card(name).family != family:
        known = ", ".join([*extra, *(c.name for c in CARDS.values() if c.family == family)])
        raise UsageError(f"--{family} {name}", f"is not a model of this family; choose one of {known}")
