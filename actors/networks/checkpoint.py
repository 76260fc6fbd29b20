"""Checkpoint file -> state dict: every file format, without what training frameworks wrap around the weights."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.errors import WeightsError

State = Mapping[str, Tensor]

#: What training frameworks wrap a state dict in; the averaged weights are preferred, as the official tools do.
#: In order: BasicSR's two, Lightning and many others, LaMa for anime, PyTorchVideo, STTN.
WRAPPERS = ("params_ema", "params", "state_dict", "gen_state_dict", "model_state", "netG")
#: What stands before the names of the network's own keys: DataParallel, torch.compile, the network's attribute in the
#: Lightning modules of SkyTNT's anime-segmentation and of LaMa. No network's own names begin so.
PREFIXES = ("module.", "_orig_mod.", "net.", "generator.")
#: How many keys an error lists.
SHOWN = 6


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, without wrappers and prefixes.

    Keys that stand beside the network's own (a loss, a teacher, a discriminator) are still among them.
    Nothing in the file is executed: only tensors and plain containers are read.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise WeightsError(path.name, f"no such file in {path.parent}", remedy="fetch or import it first")
    if _is_torchscript(path):
        raise WeightsError(
            path.name, "is a TorchScript archive (a program), not a state dict", remedy=_instead_of(path.name)
        )
    form, read = READERS.get(path.suffix.lower(), ("PyTorch", _read_torch))
    try:
        content = read(path)
    except Exception as error:  # torch documents no exception types: a damaged file raises nearly any
        raise WeightsError(
            path.name,
            f"is not a readable {form} checkpoint ({_first_line(error)})",
            remedy="it is cut off, another format, or holds code, which is never run; fetch it again",
        ) from error
    while isinstance(content, Mapping) and (name := next((w for w in WRAPPERS if w in content), None)):
        content = content[name]
    return _without_prefixes(path, _checked(path, content))


def listing(names: Sequence[str]) -> str:
    """The first of the names, and how many there are."""
    more = f", … ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file  # the benches of bare networks run where it is not installed

    return load_file(path)


def _read_onnx(path: Path) -> Any:
    """The initialisers of the graph, which itself is not used."""
    import onnx  # as above

    tensors = onnx.load(path, load_external_data=False).graph.initializer
    if not tensors:
        raise ValueError("it has no graph with initialisers")
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in tensors):
        raise ValueError("it keeps its numbers in another file")
    return {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in tensors}


#: Readers of other formats than PyTorch's, by the file name's end, and what an error calls the format.
READERS: Mapping[str, tuple[str, Callable[[Path], Any]]] = {
    ".safetensors": ("safetensors", _read_safetensors),
    ".onnx": ("ONNX", _read_onnx),
}


def _checked(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(path.name, f"holds a {type(content).__name__}, not a state dict")
    alien = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if alien:
        raise WeightsError(path.name, f"is not a state dict: not tensors: {listing(alien)}")
    return dict(content)


def _without_prefixes(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in PREFIXES if any(key.startswith(p) for key in state)), None):
        bare = {key.removeprefix(prefix): value for key, value in state.items()}
        if len(bare) < len(state):
            double = [key for key in state if prefix + key in state]
            raise WeightsError(path.name, f"has keys with {prefix!r} and without: {listing(double)}")
        state = bare
    return state


def _instead_of(program: str) -> str:
    """Where the plain weights are of a network that goes around as a program."""
    from cluster.registry import official_registry  # the benches of bare networks run without pydantic

    entry = official_registry().resembling(program)
    if entry is None:
        return "use the .pth checkpoint"
    return f"use {entry.urls[0]} (`troupe weights fetch {entry.name}`)" if entry.urls else entry.how_to_get


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
