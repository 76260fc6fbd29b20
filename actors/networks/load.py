"""Checkpoint file -> network: the file's keys and shapes decide which network of what size it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from actors.model import Dtype
from actors.networks import (
    birefnet,
    bisenet,
    ferplus,
    isnet,
    lama,
    modnet,
    raft,
    rrdb,
    rvm,
    srvgg,
    transnetv2,
    u2net,
    x3d,
)
from actors.networks.checkpoint import State, listing, read_state
from actors.networks.inpaint import e2fgvi, flow_completion, propainter, sttn
from actors.networks.tracking import cutie, deaot, xmem
from actors.networks.unfilled import Unfilled
from cluster.errors import WeightsError

#: The known families in order of trial. Each is a function beside its network that returns the network in the sizes
#: that the state dict shows, weights not loaded, or None when the keys are another family's.
FAMILIES: Mapping[str, Callable[[State], nn.Module | None]] = {
    "srvgg": srvgg.detect,
    "rrdb": rrdb.detect,
    "rvm": rvm.build_rvm,
    "u2net": u2net.detect,
    "isnet": isnet.detect,
    "modnet": modnet.detect,
    "bisenet": bisenet.detect,
    "ferplus": ferplus.detect,
    "birefnet": birefnet.detect,
    "raft": raft.detect,
    "gma": raft.detect_gma,
    "transnetv2": transnetv2.detect,
    "lama": lama.detect,
    "x3d": x3d.detect,
    "propainter": propainter.detect,
    "propainter_flow": flow_completion.detect,
    "e2fgvi": e2fgvi.detect,
    "sttn": sttn.detect,
    "xmem": xmem.detect,
    "cutie": cutie.detect,
    "deaot": deaot.detect,
}

#: Beginnings of keys that official files have beside their network's own, by family. They are dropped; any other
#: unknown key refuses the file.
LEFTOVERS: Mapping[str, tuple[str, ...]] = {
    # The encoder of masks that supervises training.
    "isnet": ("gt_encoder.",),
    # Training's other networks.
    "lama": ("discriminator.", "loss_", "val_evaluator.", "test_evaluator."),
    # Constants of the ONNX graph, which are part of the network here.
    "ferplus": ("Constant339", "Constant343", "Dropout612_Output_0_reshape0_shape", "Parameter1367_reshape1_shape"),
}

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
            f"is not the same network as {first.name}: they differ in {listing(differ)}",
            remedy="fetch both files of this model again",
        )
    return _build(first, {key: strength * a[key].float() + (1.0 - strength) * b[key].float() for key in a})


def _build(path: Path, state: State) -> Loaded:
    for kind, detect in FAMILIES.items():
        with Unfilled():
            network = detect(state)
        if network is not None:
            dropped = LEFTOVERS.get(kind, ())
            _fill(path, kind, network, {key: value for key, value in state.items() if not key.startswith(dropped)})
            scale = network.scale if isinstance(network, srvgg.SRVGGNetCompact | rrdb.RRDBNet) else 1
            return Loaded(network.eval().requires_grad_(False), kind, scale)
    keys = [f"{key} {list(value.shape)}" for key, value in state.items()]
    raise WeightsError(
        path.name, f"is none of the known networks ({', '.join(FAMILIES)}); its {len(keys)} keys: {listing(keys)}"
    )


def _fill(path: Path, kind: str, network: nn.Module, state: State) -> None:
    expected = network.state_dict()
    wrong = {
        "lacks": [key for key in expected if key not in state],
        "has unknown": [key for key in state if key not in expected],
        "has in another shape": [key for key in expected if key in state and state[key].shape != expected[key].shape],
    }
    if not any(wrong.values()):
        differ = [f"{a} = {b}" for a, b in _shared(expected) if not torch.equal(state[a], state[b])]
        wrong["has two values for one tensor in"] = differ
    faults = [f"{word} {listing(keys)}" for word, keys in wrong.items() if keys]
    if faults:
        raise WeightsError(path.name, f"looks like {kind} but {'; '.join(faults)}")
    # A key of the right name can still be NaN or infinite in a damaged file: black frames that nobody reports.
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise WeightsError(path.name, f"has values that are not numbers in {listing(bad)}", remedy="fetch it again")
    network.load_state_dict(state, strict=True)


def _shared(state: State) -> list[tuple[str, str]]:
    """Names that stand for the same tensor, each with the first of them."""
    first: dict[int, str] = {}
    pairs = [(first.setdefault(value.data_ptr(), key), key) for key, value in state.items()]
    return [pair for pair in pairs if pair[0] != pair[1]]
