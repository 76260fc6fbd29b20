"""The budget of a GPU: what each pin takes of it, whether all fit, and what would make them fit. Pure; knows no Ray.

A pin takes the weights of the models that it keeps loaded, the largest working memory that one of them needs for a call
(calls run one at a time), a margin of a tenth on both, and one CUDA context. That, as a share of the card's memory
rounded up to a hundredth, is its `num_gpus`, unless the configuration names one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cluster.cards import Card
from cluster.config import PinSettings
from cluster.packing import blocked_by_packing
from cluster.profiles import Figures

#: On measured peaks: gaps of the allocator, other driver versions.
MARGIN = 1.10
#: The least that a pin can work in: it halves micro-batch and tile on out-of-memory down to these.
FLOOR_TILE = 256


@dataclass(frozen=True, slots=True)
class ModelNeed:
    """What a model takes in its pin's setting, in MiB; `known` is False when nobody has measured or estimated it."""

    name: str
    resident_mib: float = 0
    activation_mib: float = 0
    estimated: bool = True
    known: bool = True


@dataclass(frozen=True, slots=True)
class PinNeed:
    """What a pin takes.

    Attributes:
        pin: its settings.
        models: what each of its models takes.
        resident_mib: of the models that it keeps loaded at once, the largest ones.
        activation_mib: of the model that works with most.
        context_mib: of the process.
        need_mib: all of it, margin included.
        floor_mib: the least that every model can work in, one frame and small tiles.
        share: of a card, as `num_gpus`: the configured one, else the one that is needed.
        needed: the share that is needed, None when a model is unknown.
        replicas: processes.
    """

    pin: PinSettings
    models: tuple[ModelNeed, ...]
    resident_mib: float
    activation_mib: float
    context_mib: float
    need_mib: float
    floor_mib: float
    share: float
    needed: float | None
    replicas: int

    @property
    def estimated(self) -> bool:
        """Whether any of its figures is not measured on this card."""
        return any(model.estimated for model in self.models)

    @property
    def explicit(self) -> bool:
        """Whether the configuration names the share."""
        return self.pin.num_gpus is not None


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change of the configuration.

    Attributes:
        change: what to do, as a person reads it.
        total: shares of all pins afterwards, those of a card.
        fits: whether that is enough.
    """

    change: str
    total: float
    fits: bool


@dataclass(frozen=True, slots=True)
class Budget:
    """All pins on the cards.

    Attributes:
        card: what the shares are of; the smallest, where cards differ.
        assumed: True when nobody could be asked which card it is.
        gpus: how many there are.
        pins: what each takes; none of them when there is no GPU.
        free: of each GPU what is not held by others, 0 to 1.
        problems: why it does not fit; empty when it does.
        warnings: what should be known though it fits.
        remedies: what would make it fit.
    """

    card: Card
    assumed: bool
    gpus: int
    pins: tuple[PinNeed, ...]
    free: tuple[float, ...]
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every pin finds room wherever Ray puts the others."""
        return not self.problems

    @property
    def total(self) -> float:
        """Shares of all replicas."""
        return round(sum(need.share * need.replicas for need in self.pins), 4)

    def resolved(self, name: str) -> PinSettings:
        """A pin's settings with its share and its number of replicas filled in."""
        need = next(need for need in self.pins if need.pin.name == name)
        return need.pin.model_copy(update={"num_gpus": need.share, "replicas": need.replicas})


def share_of(mib: float, total_mib: float) -> float:
    """A share of a card that holds so much, rounded up to a hundredth."""
    return math.ceil(round(100 * mib / total_mib, 6)) / 100


def replicas_of(pin: PinSettings, gpus: int) -> int:
    """Processes of a pin; one for each GPU when it says `per_gpu`, and one where there is none."""
    return max(1, gpus) if pin.replicas == "per_gpu" else pin.replicas


def need_of(pin: PinSettings, card: Card, gpus: int, figures: Figures) -> PinNeed:
    """What a pin takes of a card."""
    models = tuple(_model_need(pin, name, figures) for name in pin.models)
    residents = sorted((model.resident_mib for model in models), reverse=True)
    resident = sum(residents[: pin.resident])
    activation = max(model.activation_mib for model in models)
    small = pin.model_copy(update={"micro_batch": 1, "tile": min(pin.tile or FLOOR_TILE, FLOOR_TILE)})
    least = max(_model_need(small, name, figures).activation_mib for name in pin.models)
    need = MARGIN * (resident + activation) + figures.context_mib
    needed = share_of(need, card.total_mib) if all(model.known for model in models) else None
    share = pin.num_gpus if pin.num_gpus is not None else (needed or 0.0)
    return PinNeed(
        pin=pin,
        models=models,
        resident_mib=resident,
        activation_mib=activation,
        context_mib=figures.context_mib,
        need_mib=need,
        floor_mib=residents[0] + least + figures.context_mib,
        share=share,
        needed=needed,
        replicas=replicas_of(pin, gpus),
    )


def _model_need(pin: PinSettings, name: str, figures: Figures) -> ModelNeed:
    dtype = "fp16" if pin.dtype == "auto" else pin.dtype
    found = figures.memory(name, dtype, pin.frame_pixels, pin.micro_batch, pin.tile)
    return (
        ModelNeed(name, known=False)
        if found is None
        else ModelNeed(name, found.resident, found.activation, found.estimated)
    )


def make_budget(
    pins: Sequence[PinSettings],
    card: Card,
    figures: Figures,
    *,
    free: Sequence[float] = (1.0,),
    assumed: bool = False,
    used_mib: int = 0,
) -> Budget:
    """The budget of pins that start now.

    Args:
        pins: those with `num_gpus` 0 stay on the CPU and count for nothing.
        card: the smallest of the cards.
        figures: what models take of such a card.
        free: of each GPU the share that is free for these pins; one GPU, all of it, unless told otherwise.
        assumed: whether `card` is a guess.
        used_mib: what programs outside Ray have of the card now.
    """
    needs = tuple(need_of(pin, card, len(free), figures) for pin in pins if pin.num_gpus != 0)
    budget = Budget(card, assumed, len(free), needs, tuple(free))
    problems = tuple(_problems(budget))
    return replace(
        budget,
        problems=problems,
        warnings=tuple(_warnings(budget, used_mib)),
        remedies=tuple(_remedies(budget, figures)) if problems else (),
    )


def _problems(budget: Budget) -> Iterator[str]:
    for need in budget.pins:
        pin = need.pin
        if need.needed is None and not need.explicit:
            unknown = ", ".join(model.name for model in need.models if not model.known)
            yield f"pin {pin.name}: nobody knows what {unknown} takes: run `troupe profile {unknown}`, or give num_gpus"
        elif need.share > 1:
            yield f"pin {pin.name} needs {need.need_mib:.0f} MiB, and the card has {budget.card.total_mib}"
        elif need.needed is not None and need.share * budget.card.total_mib < need.floor_mib:
            yield (
                f"pin {pin.name}: num_gpus {need.share:g} is {need.share * budget.card.total_mib:.0f} MiB, and its "
                f"models need {need.floor_mib:.0f} even frame by frame in tiles of {FLOOR_TILE}"
            )
    total, room = budget.total, round(sum(budget.free), 4)
    if total > room:
        held = round(budget.gpus - room, 4)
        others = f", of which others hold {held:g}" if held else ""
        yield f"the pins take {total:g} of {budget.gpus} GPU{'s' * (budget.gpus > 1)}{others}"
    elif all(need.share <= 1 for need in budget.pins):
        yield from _packing_problem(budget)


def _packing_problem(budget: Budget) -> Iterator[str]:
    blocked = blocked_by_packing({n.pin.name: (n.share, n.replicas) for n in budget.pins}, budget.free)
    for need in budget.pins:
        if need.pin.name == blocked:
            yield (
                f"{budget.total:g} of {sum(budget.free):g} GPUs would do, but Ray may place the others so that no GPU "
                f"has the {need.share:g} left that pin {blocked} takes"
            )


def _warnings(budget: Budget, used_mib: int) -> Iterator[str]:
    for need in budget.pins:
        bare = need.resident_mib + need.activation_mib + need.context_mib
        given = need.share * budget.card.total_mib
        if need.explicit and need.needed is None:
            yield f"pin {need.pin.name}: num_gpus {need.share:g} is not checked, no figures for all its models"
        elif need.explicit and need.floor_mib <= given < bare:
            yield (
                f"pin {need.pin.name}: num_gpus {need.share:g} is less than the {need.needed:g} needed for frames of "
                f"{need.pin.frame}: it will lower its micro-batch or use tiles, and say so"
            )
    if (
        budget.pins
        and used_mib
        and budget.total / budget.gpus * budget.card.total_mib + used_mib > budget.card.total_mib
    ):
        yield f"programs outside Ray have {used_mib} MiB of the card now: with the pins that is more than there is"


def _remedies(budget: Budget, figures: Figures) -> Iterator[Remedy]:
    """Single changes that suffice, those that cost least first; where none does, those that help most."""
    found = list(_changes(budget, figures))
    yield from [remedy for remedy in found if remedy.fits][:5] or sorted(found, key=lambda remedy: remedy.total)[:3]


def _changes(budget: Budget, figures: Figures) -> Iterator[Remedy]:
    pins = [need.pin for need in budget.pins]
    for index, need in enumerate(budget.pins):
        for what, change in _pin_changes(need, figures):
            # A share that is given stands for what the change makes of it, unless the change is the share.
            pin = need.pin.model_copy(update={"num_gpus": None, **change})
            after = need_of(pin, budget.card, budget.gpus, figures)
            if change.keys() & {"num_gpus", "replicas"} or after.share < (need.needed or 0):
                loose = " without num_gpus" if need.explicit and "num_gpus" not in change else ""
                changed = [*pins[:index], pin, *pins[index + 1 :]]
                yield from _tried(budget, changed, f"`{what}`{loose} for pin {need.pin.name}", figures)
    if len(pins) > 1:
        together = pins[0].model_copy(
            update={
                "models": tuple(model for pin in pins for model in pin.models),
                "num_gpus": None,
                "resident": max(pin.resident for pin in pins),
                "frame": max(
                    (pin.frame for pin in pins), key=lambda f: pins[0].model_copy(update={"frame": f}).frame_pixels
                ),
                "micro_batch": max(pin.micro_batch for pin in pins),
            }
        )
        yield from _tried(
            budget, [together], f"give pin {pins[0].name} all models, one process instead of {len(pins)}", figures
        )
        for index, pin in enumerate(pins):
            rest = [*pins[:index], *pins[index + 1 :]]
            yield from _tried(budget, rest, f"run without pin {pin.name} at the same time", figures)


def _pin_changes(need: PinNeed, figures: Figures) -> Iterator[tuple[str, dict[str, object]]]:
    pin = need.pin
    if need.explicit and need.needed is not None and need.needed != need.share:
        yield f"num_gpus: {need.needed:g}", {"num_gpus": need.needed}
    for tile in (512, 256):
        if (pin.tile == 0 or tile < pin.tile) and any(figures.tiles(name) for name in pin.models):
            yield f"tile: {tile}", {"tile": tile}
    if pin.micro_batch > 1:
        yield "micro_batch: 1", {"micro_batch": 1}
    if pin.resident > 1 and len(pin.models) > 1:
        yield "resident: 1", {"resident": 1}
    if pin.frame in ("4k", "1440p", "1080p"):
        smaller = {"4k": "1080p", "1440p": "1080p", "1080p": "720p"}[pin.frame]
        yield f"frame: {smaller}", {"frame": smaller}
    if need.replicas > 1:
        yield "replicas: 1", {"replicas": 1}


def _tried(budget: Budget, pins: Sequence[PinSettings], change: str, figures: Figures) -> Iterator[Remedy]:
    needs = tuple(need_of(pin, budget.card, budget.gpus, figures) for pin in pins)
    tried = replace(budget, pins=needs)
    fits = not list(_problems(tried))
    if fits or tried.total < budget.total:
        yield Remedy(change, tried.total, fits)
