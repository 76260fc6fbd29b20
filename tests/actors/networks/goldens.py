"""Recorded outputs of official implementations, weights made from parameter names, and which parameters matter."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

FILE = "networks2.npz"


def fill(
    shared: Path, network: nn.Module, gain: float = 1.0, keep: Sequence[str] = (), ties: str | None = None
) -> nn.Module:
    """Weights made from the official names; the network in eval mode.

    Args:
        keep: ends of names that stay as constructed; integer buffers always do.
        ties: a network of `ties.json`. Of names that share one tensor officially, the last one's value holds.
    """
    folder = shared / "goldens"
    before = {name: value.clone() for name, value in network.state_dict().items()}
    runpy.run_path(str(folder / "fill.py"))["fill_"](network, 0, gain)
    state = network.state_dict()
    for name, value in before.items():
        integer = not value.is_floating_point() and not name.endswith("num_batches_tracked")
        if integer or name.endswith(tuple(keep)):
            state[name].copy_(value)
    for *others, winner in json.loads((folder / "ties.json").read_text())[ties] if ties else ():
        for name in others:
            state[name].copy_(state[winner])
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def arrays(shared: Path, entry: str) -> dict[str, Tensor]:
    """Inputs and outputs of one entry by their names."""
    with np.load(shared / "goldens" / FILE) as stored:
        prefix = f"{entry}/"
        return {
            name.removeprefix(prefix): torch.from_numpy(stored[name])
            for name in stored.files
            if name.startswith(prefix)
        }


def check(shared: Path, entry: str, outputs: Mapping[str, Tensor]) -> None:
    """Every recorded output of the entry is among `outputs`, of the same shape, and within its tolerance."""
    tolerances = json.loads((shared / "goldens" / "tolerances.json").read_text())[entry]
    recorded = arrays(shared, entry)
    assert set(tolerances) == set(outputs)
    for name, tolerance in tolerances.items():
        assert outputs[name].shape == recorded[name].shape, name
        difference = (outputs[name].double() - recorded[name].double()).abs().max().item()
        assert difference <= tolerance, f"{entry}/{name}: {difference:.2e}, allowed {tolerance:.0e}"


def check_keys(shared: Path, entry: str, network: nn.Module) -> None:
    """The state dict has exactly the official names, in the official order, with the official shapes."""
    official = json.loads((shared / "goldens" / "keys.json").read_text())[entry]
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
