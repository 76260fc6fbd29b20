"""The budget as text: what `troupe plan` prints, and what every refusal carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.budget import Budget, PinNeed

_BAR = 40
_FILLS = "█▓▒▚▞"


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines: the first column to the left, the others to the right."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def budget_lines(budget: Budget, holders: Sequence[str] = ()) -> list[str]:
    """Table, bar, problems, warnings and remedies of a budget.

    Args:
        holders: who else has a share, a line each.
    """
    card = f"{budget.gpus} x {budget.card.name}, {budget.card.total_mib} MiB"
    lines = [card + (" (assumed: no driver answers here)" if budget.assumed else "")]
    rows = [_row(need) for need in budget.pins]
    head = ("pin", "num_gpus", "x", "need MiB", "weights", "working", "context", "for", "figures")
    lines += as_table(head, rows) if rows else ["no pin is on a GPU"]
    lines += [_bar(budget), *holders]
    lines += [f"does not fit: {problem}" for problem in budget.problems]
    lines += [
        f"would {'' if remedy.fits else 'not yet '}fit with {remedy.change} ({remedy.total:g})"
        for remedy in budget.remedies
    ]
    return lines + [f"note: {warning}" for warning in budget.warnings]


def _row(need: PinNeed) -> tuple[str, ...]:
    pin = need.pin
    share = f"{need.share:.2f}" if need.share == round(need.share, 2) else f"{need.share:g}"
    unknown = need.needed is None
    return (
        pin.name,
        share + (" (given)" if need.explicit else ""),
        str(need.replicas),
        "?" if unknown else f"{need.need_mib:.0f}",
        f"{need.resident_mib:.0f}",
        f"{need.activation_mib:.0f}",
        f"{need.context_mib:.0f}",
        f"{pin.frame}, {pin.micro_batch} at once" + (f", tile {pin.tile}" if pin.tile else ""),
        "unknown" if unknown else "estimated" if need.estimated else "measured",
    )


def _bar(budget: Budget) -> str:
    """One GPU's worth of cells for each GPU, each pin in a shade of its own; what others hold is hatched."""
    width = _BAR * budget.gpus if budget.gpus <= 2 else 2 * _BAR
    per_share = width / budget.gpus
    cells, names = "", []
    for index, need in enumerate(budget.pins):
        fill = _FILLS[index % len(_FILLS)]
        cells += fill * max(1, round(need.share * need.replicas * per_share))
        names.append(f"{fill} {need.pin.name}")
    held = budget.gpus - sum(budget.free)
    if held > 0.005:
        cells += "/" * max(1, round(held * per_share))
        names.append("/ others")
    bar = cells[:width].ljust(width, "·") + ("" if len(cells) <= width else f"|{cells[width:]}"[: _BAR + 1])
    return f"[{bar}] {budget.total + max(0.0, held):.2f} of {budget.gpus}: {', '.join(names) or 'nothing'}"


def budget_values(budget: Budget) -> dict[str, Any]:
    """The budget as JSON values."""
    return {
        "card": budget.card.name,
        "card_mib": budget.card.total_mib,
        "assumed": budget.assumed,
        "gpus": budget.gpus,
        "free": list(budget.free),
        "fits": budget.fits,
        "total": budget.total,
        "pins": [
            {
                "name": need.pin.name,
                "num_gpus": need.share,
                "needed": need.needed,
                "explicit": need.explicit,
                "replicas": need.replicas,
                "need_mib": round(need.need_mib),
                "floor_mib": round(need.floor_mib),
                "resident_mib": round(need.resident_mib),
                "activation_mib": round(need.activation_mib),
                "context_mib": round(need.context_mib),
                "frame": need.pin.frame,
                "micro_batch": need.pin.micro_batch,
                "tile": need.pin.tile,
                "estimated": need.estimated,
                "models": {
                    model.name: {
                        "resident_mib": round(model.resident_mib, 1),
                        "activation_mib": round(model.activation_mib, 1),
                        "estimated": model.estimated,
                    }
                    if model.known
                    else None
                    for model in need.models
                },
            }
            for need in budget.pins
        ],
        "problems": list(budget.problems),
        "warnings": list(budget.warnings),
        "remedies": [
            {"change": remedy.change, "total": remedy.total, "fits": remedy.fits} for remedy in budget.remedies
        ],
    }
