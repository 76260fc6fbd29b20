"""Every model by name. A new family is a folder beside `upscale` and one line here."""

from __future__ import annotations

from actors import matte, upscale
from actors.model import Card
from cluster.errors import UsageError

CARDS: dict[str, Card] = {card.name: card for card in (*upscale.CARDS, *matte.CARDS)}


def card(name: str) -> Card:
    """The card of a model.

    Raises:
        UsageError: there is no such model; the text lists those that exist.
    """
    try:
        return CARDS[name]
    except KeyError:
        known = ", ".join(sorted(CARDS))
        raise UsageError(name, "is not a model", remedy=f"choose one of {known}") from None


def weights_of_models() -> tuple[str, ...]:
    """Names in the weights registry of what all models need, each once."""
    return tuple(dict.fromkeys(name for card in CARDS.values() for name in card.weights))
