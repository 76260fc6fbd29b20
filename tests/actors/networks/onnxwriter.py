"""Writes small ONNX files, so that tests need no file and no onnx package (field numbers: onnx.proto)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from torch import Tensor, float32

Attribute = int | str | Sequence[int]


def onnx_model(
    initialisers: Mapping[str, Tensor], nodes: Sequence[bytes] = (), x: str = "x", y: str = "y", packed: bool = False
) -> bytes:
    """A model of opset 8 with one input and one output of float32. `packed`: numbers not as raw bytes."""
    parts = [_field(1, n) for n in nodes] + [_field(2, "graph")]
    parts += [_field(5, _tensor(name, value, packed)) for name, value in initialisers.items()]
    inputs = {x: None, **initialisers}
    parts += [_field(11, _value_info(name, value)) for name, value in inputs.items()]
    graph = b"".join([*parts, _field(12, _value_info(y, None))])
    return _field(1, 3) + _field(7, graph) + _field(8, _field(2, 8))


def node(operator: str, inputs: Sequence[str], output: str, **attributes: Attribute) -> bytes:
    parts = [_field(1, name) for name in inputs] + [_field(2, output), _field(4, operator)]
    return b"".join(parts + [_field(5, _attribute(name, value)) for name, value in attributes.items()])


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, int):
        return _field(1, name) + _field(3, value) + _field(20, 2)
    if isinstance(value, str):
        return _field(1, name) + _field(4, value) + _field(20, 3)
    return _field(1, name) + b"".join(_field(8, number) for number in value) + _field(20, 7)


def _tensor(name: str, value: Tensor, packed: bool) -> bytes:
    real = value.dtype == float32
    head = b"".join(_field(1, side) for side in value.shape) + _field(2, 1 if real else 7) + _field(8, name)
    raw = value.contiguous().numpy().tobytes()
    if not packed:
        return head + _field(9, raw)
    return head + (_field(4, raw) if real else _field(7, b"".join(_varint(int(v)) for v in value.flatten())))


def _value_info(name: str, value: Tensor | None) -> bytes:
    kind = _field(1, 1 if value is None or value.dtype == float32 else 7)
    if value is not None:
        kind += _field(2, b"".join(_field(1, _field(1, side)) for side in value.shape))
    return _field(1, name) + _field(2, _field(1, kind))


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    value, out = struct.unpack("<Q", struct.pack("<q", value))[0], b""
    while value > 0x7F:
        value, out = value >> 7, out + bytes([value & 0x7F | 0x80])
    return out + bytes([value])
