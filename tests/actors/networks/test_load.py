"""The loader: the checkpoint decides which network it is, and a bad file is named with what is wrong with it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import Tensor

from actors.networks import load
from actors.networks.checkpoint import PREFIXES, read_state
from actors.networks.load import load_blend, load_network
from actors.networks.rrdb import RRDBNet
from actors.networks.rvm import MattingNetwork
from actors.networks.rvm.matting import Variant
from actors.networks.srvgg import SRVGGNetCompact
from cluster.errors import WeightsError
from tests.actors.networks import goldens
from tests.actors.networks.onnxwriter import onnx_model

Wrapped = dict[str, Any]


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(SRVGGNetCompact(features=8, convs=2, scale=2).state_dict())


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def assert_same(network: torch.nn.Module, state: dict[str, Tensor]) -> None:
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(loaded[key], value), key


WRAPS: dict[str, Callable[[dict[str, Tensor]], Wrapped]] = {
    "bare": lambda state: state,
    "params": lambda state: {"params": state},
    "params_ema": lambda state: {"params_ema": state},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "gen_state_dict": lambda state: {"gen_state_dict": state},
    "model_state": lambda state: {"model_state": state, "optimizer_state": {"lr": 0.1}, "cfg": "text"},
    "netG": lambda state: {"netG": state},
    "module.": lambda state: {"state_dict": prefixed("module.", state)},
    "module._orig_mod.": lambda state: prefixed("module._orig_mod.", state),
    "Lightning, net.": lambda state: {"epoch": 1, "callbacks": {"best": "x"}, "state_dict": prefixed("net.", state)},
    "Lightning, generator.": lambda state: {"state_dict": prefixed("generator.", state)},
}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("wrap", WRAPS)
def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path, state: dict[str, Tensor], wrap: str) -> None:
    loaded = load_network(save(tmp_path / "net.pth", WRAPS[wrap](state)))
    assert (loaded.kind, loaded.scale) == ("srvgg", 2)
    assert_same(loaded.network, state)


def test_no_official_name_begins_like_a_prefix(shared: Path) -> None:
    assert not [
        (net, name) for net, names in goldens.keys(shared).items() for name, _ in names if name.startswith(PREFIXES)
    ]


def test_keys_with_and_without_a_prefix_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = save(tmp_path / "net.pth", {**state, "net.body.0.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"has keys with 'net\.' and without: body\.0\.weight"):
        load_network(path)


def test_only_the_leftovers_of_its_own_family_are_dropped(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "net.pth", {**prefixed("net.", state), "gt_encoder.conv.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"looks like srvgg but has unknown gt_encoder\.conv\.weight"):
        load_network(path)
    monkeypatch.setattr(load, "LEFTOVERS", {"srvgg": ("gt_encoder.",)})
    assert_same(load_network(path).network, state)


def test_averaged_weights_are_preferred(tmp_path: Path, state: dict[str, Tensor]) -> None:
    raw = {key: value + 1 for key, value in state.items()}
    loaded = load_network(save(tmp_path / "net.pth", {"params": raw, "params_ema": state}))
    assert_same(loaded.network, state)


def test_the_network_is_ready_for_inference(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in RRDBNet(features=8, growth=4, blocks=1, scale=2).state_dict().items()}
    loaded = load_network(save(tmp_path / "net.pth", state))
    assert (loaded.kind, loaded.scale) == ("rrdb", 2)
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}


def test_no_weights_are_drawn_that_the_file_s_replace(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path, before = save(tmp_path / "net.pth", state), torch.get_rng_state()
    assert_same(load_network(path).network, state)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_in_the_old_file_format_loads(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "net.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert_same(load_network(path).network, state)


def test_real_weights_load(shared: Path) -> None:
    loaded = load_network(shared / "weights" / "realesr-animevideov3.pth")
    assert (loaded.kind, loaded.scale) == ("srvgg", 4)
    assert isinstance(loaded.network, SRVGGNetCompact)
    assert loaded.network.receptive_field == 18


@pytest.mark.parametrize("variant", ["mobilenetv3", "resnet50"])
def test_matting_networks_load_by_the_same_door(tmp_path: Path, variant: Variant) -> None:
    network = MattingNetwork(variant)
    loaded = load_network(save(tmp_path / "net.pth", network.state_dict()))
    assert (loaded.kind, loaded.scale) == ("rvm", 1)
    assert_same(loaded.network, dict(network.state_dict()))


def test_an_unknown_network_is_refused_with_the_keys_looked_at(tmp_path: Path) -> None:
    path = save(tmp_path / "other.pth", {f"layer{i}.weight": torch.zeros(2, 3) for i in range(20)})
    with pytest.raises(WeightsError) as caught:
        load_network(path)
    text = str(caught.value)
    assert text.startswith("other.pth: is none of the known networks (srvgg, rrdb, rvm")
    assert "20 keys: layer0.weight [2, 3], layer1.weight [2, 3]" in text


def test_missing_unknown_and_misshapen_keys_are_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    del state["body.3.weight"]
    state["body.2.bias"] = torch.zeros(5)
    state["head.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError) as caught:
        load_network(save(tmp_path / "net.pth", state))
    assert "lacks body.3.weight" in caught.value.reason
    assert "has unknown head.weight" in caught.value.reason
    assert "in another shape body.2.bias" in caught.value.reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(tmp_path: Path, state: dict[str, Tensor], value: float) -> None:
    state["body.2.weight"][0, 0, 0, 0] = value
    with pytest.raises(WeightsError, match=r"net\.pth: .*not numbers in body\.2\.weight"):
        load_network(save(tmp_path / "net.pth", state))


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_file_cut_off_anywhere_is_a_named_error(tmp_path: Path, state: dict[str, Tensor], keep: float) -> None:
    path = save(tmp_path / "net.pth", state)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(WeightsError, match=r"net\.pth: is not a readable PyTorch checkpoint"):
        load_network(path)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>404</html>\n", b"\x00" * 4096, bytes(range(256)) * 64])
def test_a_file_of_another_kind_is_a_named_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"net\.pth: is not a readable PyTorch checkpoint"):
        load_network(path)


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, state: dict[str, Tensor], form: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "net.pth"
    content = {"params": state, "extra": Payload(canary)}
    if form == "zip":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"params": {}, "extra": Payload(canary)}, protocol=2))
    with pytest.raises(WeightsError, match=r"net\.pth: .*holds code, which is never run"):
        load_network(path)
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_is_a_named_error(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(path))
    with pytest.raises(WeightsError, match=r"net\.pth: is a TorchScript archive"):
        load_network(path)


@pytest.mark.parametrize(
    "content",
    [{}, [], 3, {"params": {}}, {"params": [torch.zeros(1)]}, {"epoch": 1, "w": torch.zeros(1)}, {1: torch.zeros(1)}],
    ids=str,
)
def test_a_checkpoint_without_a_state_dict_is_a_named_error(tmp_path: Path, content: object) -> None:
    with pytest.raises(WeightsError, match=r"net\.pth: .*not a state dict"):
        load_network(save(tmp_path / "net.pth", content))


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("big-lama.pt", "huggingface.co/smartywu/big-lama"),
        ("anime-manga-big-lama.pt", "dreMaz/AnimeMangaInpainting/resolve/main/lama_large_512px.ckpt"),
        ("rvm_mobilenetv3_fp32.torchscript", "v1.0.0/rvm_mobilenetv3.pth"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_known_torchscript_archive_is_refused_with_the_right_address(tmp_path: Path, name: str, address: str) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / name))
    with pytest.raises(WeightsError, match="TorchScript") as caught:
        load_network(tmp_path / name)
    assert address in caught.value.remedy


def test_safetensors_load_in_every_type(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        cast = {key: value.to(dtype) for key, value in state.items()}
        save_file(cast, path)
        assert_same(load_network(path).network, {key: value.float() for key, value in cast.items()})


def test_numbers_at_odd_places_of_a_safetensors_file_are_read(tmp_path: Path) -> None:
    state = {"flag": torch.tensor([True]), "count": torch.tensor(7), "none": torch.zeros(0, 3), "x": torch.rand(2, 3)}
    save_file(state, tmp_path / "model.safetensors")
    read = read_state(tmp_path / "model.safetensors")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in state.items())


def test_initialisers_of_an_onnx_file_are_read(tmp_path: Path) -> None:
    state = {"Parameter3": torch.rand(4, 1, 3, 3), "Constant5": torch.tensor(255.0), "shape": torch.tensor([-1, 4096])}
    (tmp_path / "net.onnx").write_bytes(onnx_model(state))
    read = read_state(tmp_path / "net.onnx")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], value) for key, value in state.items())


def test_an_onnx_file_that_keeps_its_numbers_elsewhere_is_refused(tmp_path: Path) -> None:
    model = onnx.load_from_string(onnx_model({"x": torch.rand(64, 64)}))
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data")
    with pytest.raises(WeightsError, match=r"net\.onnx: .*keeps its numbers in another file"):
        load_network(tmp_path / "net.onnx")


def test_a_real_onnx_file_is_read_and_refused_as_no_known_network(shared: Path) -> None:
    path = shared / "weights" / "selfie_segmentation.onnx"
    assert sum(value.numel() for value in read_state(path).values()) > 100_000
    with pytest.raises(WeightsError, match="is none of the known networks"):
        load_network(path)


@pytest.mark.parametrize("keep", [0, 1, 9, 100, 0.5, 0.99])
@pytest.mark.parametrize("name", ["net.safetensors", "net.onnx"])
def test_other_formats_cut_off_anywhere_are_named_errors(
    tmp_path: Path, state: dict[str, Tensor], name: str, keep: float
) -> None:
    content = onnx_model(state) if name.endswith("onnx") else safetensors.torch.save(state)
    (tmp_path / name).write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(WeightsError, match=rf"{name}: is not a readable (safetensors|ONNX) checkpoint"):
        load_network(tmp_path / name)


def test_safetensors_that_share_or_leave_bytes_are_a_named_error(tmp_path: Path) -> None:
    place = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for header, length in (({"x": place, "y": place}, 8), ({"x": place}, 12)):
        text = json.dumps(header).encode()
        (tmp_path / "net.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(length))
        with pytest.raises(WeightsError, match="is not a readable safetensors checkpoint"):
            load_network(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    "place",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        7,
    ],
    ids=str,
)
def test_a_safetensors_header_that_lies_is_a_named_error(tmp_path: Path, place: object) -> None:
    text = json.dumps({"x": place}).encode()
    (tmp_path / "net.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(WeightsError, match="is not a readable safetensors checkpoint"):
        load_network(tmp_path / "net.safetensors")


def test_a_missing_file_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"net\.pth: no such file"):
        load_network(tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="no such file"):
        load_network(tmp_path)


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_a_blend_lies_between_two_checkpoints(tmp_path: Path, state: dict[str, Tensor], strength: float) -> None:
    other = {key: torch.randn_like(value) for key, value in state.items()}
    first, second = save(tmp_path / "a.pth", {"params": state}), save(tmp_path / "b.pth", {"params": other})
    loaded = load_blend(first, second, strength)
    assert_same(loaded.network, {key: strength * state[key] + (1 - strength) * other[key] for key in state})
    if strength in (0.0, 1.0):
        assert_same(loaded.network, state if strength else other)


def test_a_blend_of_two_networks_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    first = save(tmp_path / "a.pth", state)
    second = save(tmp_path / "b.pth", SRVGGNetCompact(features=8, convs=3, scale=2).state_dict())
    with pytest.raises(WeightsError, match=r"b\.pth: is not the same network as a\.pth: they differ in body\."):
        load_blend(first, second, 0.5)
    with pytest.raises(ValueError, match="outside 0"):
        load_blend(first, first, 1.5)


# --- every family together

#: The family of each state dict of keys.json; None: part of a checkpoint, but no network of its own.
KINDS: dict[str, str | None] = {
    **dict.fromkeys(("srvgg16", "srvgg32"), "srvgg"),
    **dict.fromkeys(("rrdb_x4_23", "rrdb_x4_6", "rrdb_x2_23"), "rrdb"),
    **{
        f"rvm_{encoder}{refiner}": "rvm"
        for encoder in ("mobilenetv3", "resnet50")
        for refiner in ("", "_fast_guided_filter")
    },
    **dict.fromkeys(("u2net", "u2netp", "u2net_sky_full2", "u2net_sky_lite2"), "u2net"),
    "isnet": "isnet",
    "isnet_gt_encoder": None,
    "modnet": "modnet",
    "bisenet": "bisenet",
    **dict.fromkeys(("birefnet_t", "birefnet_l"), "birefnet"),
    **dict.fromkeys(("raft", "raft_small"), "raft"),
    "gma": "gma",
    "transnetv2": "transnetv2",
    "lama": "lama",
    **dict.fromkeys(("x3d_xs", "x3d_s", "x3d_m", "x3d_l"), "x3d"),
    "propainter": "propainter",
    "propainter_flow": "propainter_flow",
    **dict.fromkeys(("e2fgvi", "e2fgvi_hq"), "e2fgvi"),
    "sttn": "sttn",
    "xmem": "xmem",
    **dict.fromkeys(("cutie", "cutie_small"), "cutie"),
    **dict.fromkeys(("deaott", "deaots", "deaotb", "deaotl", "r50_deaotl"), "deaot"),
}
#: The smallest state dict of each family, and what its official file has around it.
FILES: dict[str, Callable[[dict[str, Tensor]], Wrapped]] = {
    "srvgg16": lambda state: {"params": state},
    "rrdb_x4_6": lambda state: {"params_ema": state},
    "rvm_mobilenetv3": lambda state: state,
    "u2netp": lambda state: state,
    "isnet": lambda state: {
        "state_dict": {**prefixed("net.", state), "gt_encoder.conv_in.conv.weight": torch.zeros(1)},
        "optimizer_states": [],
    },
    "modnet": lambda state: prefixed("module.", state),
    "bisenet": lambda state: state,
    "birefnet_t": lambda state: prefixed("module._orig_mod.", state),
    "raft_small": lambda state: prefixed("module.", state),
    "gma": lambda state: prefixed("module.", state),
    "transnetv2": lambda state: state,
    "lama": lambda state: {
        "state_dict": {**prefixed("generator.", state), "discriminator.model0.0.weight": torch.zeros(1)},
        "epoch": 1,
    },
    "x3d_xs": lambda state: {"model_state": state, "optimizer_state": {}, "cfg": "text"},
    "propainter": lambda state: state,
    "propainter_flow": lambda state: state,
    "e2fgvi_hq": lambda state: state,
    "sttn": lambda state: {"netG": state},
    "xmem": lambda state: state,
    "cutie_small": lambda state: state,
    "deaott": lambda state: {"state_dict": prefixed("module.", state), "optimizer": {"lr": 0.1}},
}


def of_shapes(shared: Path, entry: str) -> dict[str, Tensor]:
    """The state dict of an official network, of ones that take no memory."""
    whole = ("num_batches_tracked", "relative_position_index", "valid_ind_rolled", "rel_ind")
    ones = {True: torch.ones((), dtype=torch.int64), False: torch.ones(())}
    return {name: ones[name.endswith(whole)].expand(shape) for name, shape in goldens.keys(shared)[entry]}


def test_every_official_network_has_its_family(shared: Path) -> None:
    assert KINDS.keys() == goldens.keys(shared).keys()
    assert {KINDS[entry] for entry in FILES} == load.FAMILIES.keys() - {"ferplus"}  # whose file is ONNX


@pytest.mark.parametrize("entry", KINDS)
@pytest.mark.usefixtures("meta")
def test_a_state_dict_is_its_own_family_and_no_other(shared: Path, entry: str) -> None:
    state = of_shapes(shared, entry)
    found = {kind: network for kind, detect in load.FAMILIES.items() if (network := detect(state)) is not None}
    assert list(found) == ([KINDS[entry]] if KINDS[entry] else [])
    for network in found.values():
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        assert shapes == {name: value.shape for name, value in state.items()}


@pytest.mark.parametrize("entry", FILES)
def test_a_file_of_every_family_loads_as_it_is_published(tmp_path: Path, shared: Path, entry: str) -> None:
    state = of_shapes(shared, entry)
    loaded = load_network(save(tmp_path / "net.pth", FILES[entry](state)))
    assert loaded.kind == KINDS[entry]
    assert_same(loaded.network, state)


@pytest.mark.parametrize("entry", FILES)
def test_faults_of_every_family_are_named(tmp_path: Path, shared: Path, entry: str) -> None:
    state = of_shapes(shared, entry)
    *_, misshapen, missing = (name for name, value in state.items() if value.ndim == 1)
    del state[missing]
    state |= {misshapen: torch.ones(3, 7), "other.weight": torch.ones(1)}
    with pytest.raises(WeightsError) as caught:
        load_network(save(tmp_path / "net.pth", FILES[entry](state)))
    assert caught.value.reason == (
        f"looks like {KINDS[entry]} but lacks {missing}; has unknown other.weight; has in another shape {misshapen}"
    )
