"""Writes small ONNX files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor


def onnx_model(
    initialisers: Mapping[str, Tensor], nodes: Sequence[NodeProto] = (), x: str = "x", y: str = "y"
) -> bytes:
    """A model of opset 8 with one input and one output of float32."""
    tensors = [numpy_helper.from_array(value.numpy(), name) for name, value in initialisers.items()]
    inputs = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (x, y))
    graph = helper.make_graph(nodes, "graph", [given, *inputs], [result], tensors)
    model = helper.make_model(graph, ir_version=3, opset_imports=[helper.make_opsetid("", 8)])
    return model.SerializeToString()
