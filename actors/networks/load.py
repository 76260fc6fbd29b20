"""Checkpoint file -> network: the file's keys and shapes decide which network of what size it is."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actors.model import Dtype
from actors.networks import rrdb, rvm, srvgg
from actors.networks.tracking import cutie, deaot, xmem
from cluster.errors import WeightsError

State = Mapping[str, Tensor]

#: The known families in order of trial. Each is a function beside its network that returns the network in the sizes
#: that the state dict shows, weights not loaded, or None when the keys are another family's.
FAMILIES: Mapping[str, Callable[[State], nn.Module | None]] = {
    "srvgg": srvgg.detect,
    "rrdb": rrdb.detect,
    "rvm": rvm.build_rvm,
    "xmem": xmem.detect,
    "cutie": cutie.detect,
    "deaot": deaot.detect,
}

#: What training frameworks wrap a state dict in; the averaged weights are preferred, as the official tools do.
WRAPPERS = ("params_ema", "params", "state_dict")
#: How many keys an error lists.
SHOWN = 6


#: Arithmetic by its name in the configuration.
DTYPES: Mapping[Dtype, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network with its weights, in eval mode, float32, on the CPU, without gradients.

    Attributes:
        network: the module; its class tells sizes and scale.
        kind: the family's name in `FAMILIES`.
        scale: the fixed enlargement, 1 where the network has none.
    """

    network: nn.Module
    kind: str
    scale: int


def load_network(path: Path) -> Loaded:
    """Loads a checkpoint of any known family.

    Raises:
        WeightsError: the file is missing, damaged, not a plain state dict, of no known family, or its keys, shapes
            or values are not exactly those of its network.
    """
    return _build(path, read_state(path))


def load_blend(first: Path, second: Path, strength: float) -> Loaded:
    """Loads the network that lies between two checkpoints: every weight is strength * first + (1 - strength) * second.

    This is Real-ESRGAN's "deep network interpolation", which sets the denoising strength of general-x4v3.

    Args:
        strength: 0 (all `second`) to 1 (all `first`).

    Raises:
        WeightsError: as `load_network`, or the two are not the same network.
        ValueError: `strength` is outside 0..1.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength {strength} is outside 0..1")
    a, b = read_state(first), read_state(second)
    differ = sorted(a.keys() ^ b.keys()) or [key for key in a if a[key].shape != b[key].shape]
    if differ:
        raise WeightsError(
            second.name,
            f"is not the same network as {first.name}: they differ in {_listing(differ)}",
            remedy="fetch both files of this model again",
        )
    return _build(first, {key: strength * a[key].float() + (1.0 - strength) * b[key].float() for key in a})


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, without wrappers and without the `module.` prefix of DataParallel.

    Nothing in the file is executed: only tensors and plain containers are unpickled.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise WeightsError(path.name, f"no such file in {path.parent}", remedy="fetch or import it first")
    if _is_torchscript(path):
        raise WeightsError(
            path.name, "is a TorchScript archive (a program), not a state dict", remedy="use the .pth checkpoint"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch documents no exception types: a damaged file raises nearly any
        raise WeightsError(
            path.name,
            f"is not a readable PyTorch checkpoint ({_first_line(error)})",
            remedy="it is cut off, another format, or holds code, which is never run; fetch it again",
        ) from error
    while isinstance(content, Mapping) and (name := next((w for w in WRAPPERS if w in content), None)):
        content = content[name]
    return _checked_state(path, content)


def _checked_state(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(path.name, f"holds a {type(content).__name__}, not a state dict")
    alien = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if alien:
        raise WeightsError(path.name, f"is not a state dict: not tensors: {_listing(alien)}")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value for key, value in content.items()}


def _build(path: Path, state: State) -> Loaded:
    for kind, detect in FAMILIES.items():
        network = detect(state)
        if network is not None:
            _fill(path, kind, network, state)
            scale = network.scale if isinstance(network, srvgg.SRVGGNetCompact | rrdb.RRDBNet) else 1
            return Loaded(network.eval().requires_grad_(False), kind, scale)
    keys = [f"{key} {list(value.shape)}" for key, value in state.items()]
    raise WeightsError(
        path.name, f"is none of the known networks ({', '.join(FAMILIES)}); its {len(keys)} keys: {_listing(keys)}"
    )


def _fill(path: Path, kind: str, network: nn.Module, state: State) -> None:
    expected = network.state_dict()
    wrong = {
        "lacks": [key for key in expected if key not in state],
        "has unknown": [key for key in state if key not in expected],
        "has in another shape": [key for key in expected if key in state and state[key].shape != expected[key].shape],
    }
    faults = [f"{word} {_listing(keys)}" for word, keys in wrong.items() if keys]
    if faults:
        raise WeightsError(path.name, f"looks like {kind} but {'; '.join(faults)}")
    # A key of the right name can still be NaN or infinite in a damaged file: black frames that nobody reports.
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise WeightsError(path.name, f"has values that are not numbers in {_listing(bad)}", remedy="fetch it again")
    network.load_state_dict(state, strict=True)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _listing(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
