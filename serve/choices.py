"""What a request chooses, completed by a preset and checked: for the front desk, and again by whoever runs it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from actors.catalogue import CARDS, card
from actors.video.background import parse_colour
from cluster.config import Config
from cluster.errors import UsageError, WeightsError
from cluster.weights import default_store
from jobs.backgrounds import Library
from jobs.restage.settings import MATTE_NONE, RestageSettings, resolve
from serve.edge.problems import Problem, problem_of
from serve.schemas import RestageChoices


def settings_of(config: Config, choices: RestageChoices, *, own_background: bool = False) -> RestageSettings:
    """The choices completed by their preset.

    Raises:
        Problem: 422, an unknown preset or model, or choices that contradict each other.
    """
    chosen = choices.model_dump(include=set(RestageSettings.model_fields) - {"preset"})
    if choices.scale is not None:
        if choices.target is not None:
            raise Problem(422, "invalid", "`scale` and `target` say the same thing: send one")
        chosen["target"] = f"{choices.scale:g}"
    if own_background:
        if chosen["background"] is not None:
            raise Problem(422, "invalid", "`background` is either a file or a text")
        if chosen["matte"] == MATTE_NONE:
            raise Problem(422, "invalid", "`matte=none` cuts nobody out, so the background would never show")
    elif chosen["background"] is None and chosen["matte"] != MATTE_NONE:
        chosen["background"] = config.troupe.service.background or None
    try:
        return resolve(config, choices.preset or config.troupe.service.preset, **chosen)
    except UsageError as error:
        raise Problem(422, "invalid", problem_of(error).detail) from error


def check_background(library: Library, text: str) -> None:
    """A colour or a category: never a path.

    Raises:
        Problem: 422.
    """
    if parse_colour(text) is not None:
        return
    categories = library.categories()
    if text not in categories:
        there = f"; there are the categories {', '.join(categories)}" if categories else ""
        raise Problem(422, "background", f"`background` is neither a colour nor a category of this server{there}")
    try:
        library.choose(text, "")
    except UsageError as error:
        raise Problem(422, "background", f"`background`: nothing of the category {text} can be used") from error


def check_weights(settings: RestageSettings) -> None:
    """What would fail when the task is begun is said at once; which matte `auto` takes shows only then.

    Raises:
        WeightsError: 422.
    """
    named = [name for name in (settings.upscale, settings.matte) if name in CARDS]
    require_weights(default_store(os.environ).missing([each for name in named for each in card(name).weights]))


def require_weights(missing: Sequence[str]) -> None:
    """Raises WeightsError, for the client to read, when any are missing on the server."""
    if missing:
        raise WeightsError(
            "weights",
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on the server",
            remedy=f"its operator runs `troupe weights fetch {' '.join(missing)}`; choose other models, or come again",
        )
