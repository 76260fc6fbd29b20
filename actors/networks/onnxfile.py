"""Weights of an ONNX file: the initialisers of its graph, read as plain numbers. The graph itself is not used."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

#: Fields of ONNX's protobuf messages (onnx.proto): ModelProto.graph, GraphProto.initializer, and of TensorProto.
GRAPH, INITIALIZER = 7, 5
DIMS, DATA_TYPE, FLOATS, INT64S, NAME, RAW = 1, 2, 4, 7, 8, 9
#: TensorProto.DataType.
TYPES = {1: torch.float32, 7: torch.int64, 10: torch.float16, 11: torch.float64}
FLOAT, INT64 = 1, 7

Value = int | memoryview


def read_initialisers(path: Path) -> dict[str, Tensor]:
    """Every initialiser of the file's graph, by name.

    Raises:
        ValueError: the file is not of this format, is cut off, or keeps numbers in other files.
    """
    model = memoryview(path.read_bytes())
    tensors = dict(_tensor(tensor) for graph in _messages(model, GRAPH) for tensor in _messages(graph, INITIALIZER))
    if not tensors:
        raise ValueError("it has no graph with initialisers")
    return tensors


def _tensor(message: memoryview) -> tuple[str, Tensor]:
    name, kind, dims, raw = "", 0, list[int](), bytearray()
    for field, value in _fields(message):
        if field == NAME and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif field == DATA_TYPE and isinstance(value, int):
            kind = value
        elif field == DIMS:
            dims += [value] if isinstance(value, int) else _varints(value)
        elif (field == RAW or (field == FLOATS and kind == FLOAT)) and isinstance(value, memoryview):
            raw += value  # packed little-endian numbers, in either field
        elif field == INT64S and kind == INT64:
            numbers = [value] if isinstance(value, int) else _varints(value)
            raw += struct.pack(f"<{len(numbers)}Q", *numbers)
    dtype = TYPES.get(kind)
    if dtype is None or len(raw) != prod(dims) * dtype.itemsize:
        raise ValueError(f"{name}: {len(raw)} bytes for {dims} of type {kind}")
    if not raw:
        return name, torch.empty(dims, dtype=dtype)
    return name, torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(dims)


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    return (value for field, value in _fields(message) if field == wanted and isinstance(value, memoryview))


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Field numbers and values of a protobuf message; numbers of fixed size stay bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value: Value
            value, at = _varint(message, at)
        elif wire in (1, 2, 5):
            size, at = _varint(message, at) if wire == 2 else (8 if wire == 1 else 4, at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"no protobuf message: wire type {wire}")
        if at > len(message):
            raise ValueError("it is cut off")
        yield key >> 3, value


def _varints(packed: memoryview) -> list[int]:
    values, at = list[int](), 0
    while at < len(packed):
        value, at = _varint(packed, at)
        values.append(value)
    return values


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where the next begins."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            raise ValueError("it is cut off")
        value |= (message[at] & 0x7F) << shift
        at += 1
        if not message[at - 1] & 0x80:
            return value, at
    raise ValueError("no protobuf message: a number without end")
