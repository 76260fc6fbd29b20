"""FER+ computes what its ONNX graph does.

The file of weights is not at hand: the graph is written here from its published listing (operators, names and shapes
of emotion-ferplus-8.onnx), with weights made from the names, and run by onnxruntime.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import onnxruntime
import pytest
import torch
from onnx.helper import make_node
from torch import Tensor

from actors.networks import ferplus
from actors.networks.ferplus import EMOTIONS, FERPlus
from actors.networks.load import load_network
from cluster.errors import WeightsError
from tests.actors.networks import goldens
from tests.actors.networks.onnxwriter import onnx_model

#: Kernels by block, each with the shape that the published listing gives.
CONVOLUTIONS = [
    [("Parameter3", (64, 1, 3, 3)), ("Parameter23", (64, 64, 3, 3))],
    [("Parameter63", (128, 64, 3, 3)), ("Parameter83", (128, 128, 3, 3))],
    [("Parameter575", (256, 128, 3, 3)), ("Parameter595", (256, 256, 3, 3)), ("Parameter615", (256, 256, 3, 3))],
    [("Parameter655", (256, 256, 3, 3)), ("Parameter675", (256, 256, 3, 3)), ("Parameter695", (256, 256, 3, 3))],
]
CONSTANTS = {
    "Constant339": torch.tensor(127.5),
    "Constant343": torch.tensor(255.0),
    "Dropout612_Output_0_reshape0_shape": torch.tensor([1, 4096]),
    "Parameter1367_reshape1_shape": torch.tensor([4096, 1024]),
}


def bias_of(name: str) -> str:
    return f"Parameter{int(name.removeprefix('Parameter')) + 1}"


@lru_cache
def build(shared: Path) -> FERPlus:
    network = goldens.fill(shared, FERPlus, 1.4)
    network.Parameter1367.mul_(2)  # inputs stand first in its shape, which `fill` takes for a convolution's
    return network


def graph(state: dict[str, Tensor]) -> bytes:
    nodes = [make_node("Sub", ["Input3", "Constant339"], ["m"]), make_node("Div", ["m", "Constant343"], ["x0"])]
    x = "x0"
    for i, block in enumerate(CONVOLUTIONS):
        for name, _ in block:
            conv = make_node(
                "Conv", [x, name], [f"c{name}"], kernel_shape=[3, 3], strides=[1, 1], auto_pad="SAME_UPPER"
            )
            nodes += [
                conv,
                make_node("Add", [f"c{name}", bias_of(name)], [f"a{name}"]),
                make_node("Relu", [f"a{name}"], [name + "r"]),
            ]
            x = name + "r"
        nodes.append(make_node("MaxPool", [x], [f"pool{i}"], kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0]))
        x = f"pool{i}"
    nodes += [
        make_node("Reshape", ["Parameter1367", "Parameter1367_reshape1_shape"], ["w"]),
        make_node("Reshape", [x, "Dropout612_Output_0_reshape0_shape"], ["flat"]),
        make_node("MatMul", ["flat", "w"], ["t622"]),
        make_node("Add", ["t622", "Parameter1368"], ["p624"]),
        make_node("Relu", ["p624"], ["r636"]),
        make_node("MatMul", ["r636", "Parameter1403"], ["t656"]),
        make_node("Add", ["t656", "Parameter1404"], ["p658"]),
        make_node("Relu", ["p658"], ["r670"]),
        make_node("MatMul", ["r670", "Parameter1693"], ["t690"]),
        make_node("Add", ["t690", "Parameter1694"], ["Plus692_Output_0"]),
    ]
    return onnx_model(state, nodes, "Input3", "Plus692_Output_0")


@pytest.fixture
def file(tmp_path: Path, shared: Path) -> Path:
    path = tmp_path / "emotion-ferplus-8.onnx"
    path.write_bytes(graph(dict(build(shared).state_dict()) | CONSTANTS))
    return path


@torch.no_grad()
def test_the_loaded_file_computes_what_onnxruntime_does_with_it(file: Path) -> None:
    loaded = load_network(file)
    assert loaded.kind == "ferplus"
    faces = (torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(4)) * 255).round()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    expected = torch.cat([torch.from_numpy(session.run(None, {"Input3": face[None].numpy()})[0]) for face in faces])
    assert expected.std() > 0.05
    torch.testing.assert_close(loaded.network(faces), expected, rtol=1e-4, atol=1e-5)


def test_an_initialiser_that_the_graph_does_not_have_is_refused(tmp_path: Path, shared: Path) -> None:
    path = tmp_path / "emotion-ferplus-8.onnx"
    path.write_bytes(onnx_model(dict(build(shared).state_dict()) | {"Parameter9": torch.zeros(1)}))
    with pytest.raises(WeightsError, match="looks like ferplus but has unknown Parameter9"):
        load_network(path)


def test_names_and_shapes_are_those_of_the_initialisers() -> None:
    network = FERPlus()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    kernels = dict(kernel for block in CONVOLUTIONS for kernel in block)
    biases = {bias_of(name): (shape[0], 1, 1) for name, shape in kernels.items()}
    dense = {"Parameter1367": (256, 4, 4, 1024), "Parameter1403": (1024, 1024), "Parameter1693": (1024, 8)}
    dense_biases: dict[str, tuple[int, ...]] = {
        "Parameter1368": (1024,),
        "Parameter1404": (1024,),
        "Parameter1694": (8,),
    }
    assert shapes == kernels | biases | dense | dense_biases
    assert goldens.millions(network) == 8.76
    assert len(EMOTIONS) == 8
    assert ferplus.detect(network.state_dict()) is not None
    assert ferplus.detect({"Parameter3": torch.zeros(64, 1, 3, 3)}) is None


def test_every_tensor_of_the_state_dict_matters(shared: Path) -> None:
    faces = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(5)) * 255
    network = build(shared)
    assert goldens.dead(network, lambda: [network(faces)]) == set()


def test_other_shapes_are_refused_with_the_rule() -> None:
    with pytest.raises(ValueError, match=r"grey and 64x64.*got \[1, 3, 64, 64\]"):
        FERPlus()(torch.zeros(1, 3, 64, 64))
