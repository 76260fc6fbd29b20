"""Recorded outputs of official implementations, weights made from parameter names, and which parameters matter."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actors.networks.unfilled import Unfilled

N = TypeVar("N", bound=nn.Module)

FILE = "networks2.npz"


def fill(
    shared: Path, build: Callable[[], N], gain: float = 1.0, keep: Sequence[str] = (), ties: str | None = None
) -> N:
    """A network with weights made from the official names, in eval mode.

    Args:
        keep: ends of names that stay as constructed; integer buffers always do.
        ties: a network of `ties.json`. Of names that share one tensor officially, the last one's value holds.
    """
    with Unfilled():
        network = build()
    folder = shared / "goldens"
    before = {name: value.clone() for name, value in network.state_dict().items()}
    runpy.run_path(str(folder / "fill.py"))["fill_"](network, 0, gain)
    state = network.state_dict()
    for name, value in before.items():
        integer = not value.is_floating_point() and not name.endswith("num_batches_tracked")
        if integer or name.endswith(tuple(keep)):
            state[name].copy_(value)
    for *others, winner in stored(folder / "ties.json")[ties] if ties else ():
        for name in others:
            state[name].copy_(state[winner])
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


@cache
def stored(path: Path) -> Any:
    """What a JSON file holds; nobody changes it."""
    return json.loads(path.read_text())


def arrays(shared: Path, entry: str) -> dict[str, Tensor]:
    """Inputs and outputs of one entry by their names."""
    with np.load(shared / "goldens" / FILE) as file:
        prefix = f"{entry}/"
        return {
            name.removeprefix(prefix): torch.from_numpy(file[name]) for name in file.files if name.startswith(prefix)
        }


def check(shared: Path, entry: str, outputs: Mapping[str, Tensor]) -> None:
    """Every recorded output of the entry is among `outputs`, of the same shape, and within its tolerance."""
    tolerances = stored(shared / "goldens" / "tolerances.json")[entry]
    recorded = arrays(shared, entry)
    assert set(tolerances) == set(outputs)
    for name, tolerance in tolerances.items():
        assert outputs[name].shape == recorded[name].shape, name
        difference = (outputs[name].double() - recorded[name].double()).abs().max().item()
        assert difference <= tolerance, f"{entry}/{name}: {difference:.2e}, allowed {tolerance:.0e}"


def keys(shared: Path) -> Mapping[str, Sequence[tuple[str, Sequence[int]]]]:
    """Names and shapes of every official state dict, by entry."""
    found: Mapping[str, Sequence[tuple[str, Sequence[int]]]] = stored(shared / "goldens" / "keys.json")
    return found


def check_keys(shared: Path, entry: str, network: nn.Module) -> None:
    """The state dict has exactly the official names, in the official order, with the official shapes."""
    official = keys(shared)[entry]
    assert [[name, list(value.shape)] for name, value in network.state_dict().items()] == official


def millions(network: nn.Module) -> float:
    """Parameters in millions, rounded as the official figures are."""
    return round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2)


def dead(network: nn.Module, call: Callable[[], Iterable[Tensor]]) -> set[str]:
    """Names in the state dict on which no output depends: a random sum of all outputs has no gradient there.

    Those are parameters, statistics and other buffers alike; counters are left out. `call` must not be under
    `inference_mode`.
    """
    generator = torch.Generator().manual_seed(5)
    values = {name: value for name, value in network.state_dict(keep_vars=True).items() if value.is_floating_point()}
    for value in values.values():
        value.requires_grad_(True)
    try:
        with torch.enable_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "batch_norm", _batch_norm)
            total: Any = sum((output * torch.rand(output.shape, generator=generator)).sum() for output in call())
            gradients = torch.autograd.grad(total, list(values.values()), allow_unused=True)
    finally:
        for value in values.values():
            value.requires_grad_(False)
    return {
        name
        for name, gradient in zip(values, gradients, strict=True)
        if gradient is None or not gradient.abs().max() > 0
    }


def _batch_norm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001 - of training
    eps: float = 1e-5,
) -> Tensor:
    """torch's with known statistics, in operations that have gradients for them."""
    assert not training
    scale = weight * (var + eps).rsqrt()
    places = (-1, *[1] * (x.ndim - 2))
    return x * scale.view(places) + (bias - mean * scale).view(places)
