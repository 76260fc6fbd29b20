"""Safetensors files: a JSON header of names, types, shapes and places, then plain numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
#: The format's own bound of its header.
LARGEST_HEADER = 100_000_000

Place = tuple[torch.dtype, torch.Size, int, int]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file, by name (format: github.com/huggingface/safetensors).

    Raises:
        ValueError: the file is not of this format, or is cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header: Any = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no table")
        header.pop("__metadata__", None)
        places = {name: _place(name, entry, size - 8 - length) for name, entry in header.items()}
        # The format knows neither holes nor overlaps.
        if sum(end - begin for _, _, begin, end in places.values()) != size - 8 - length:
            raise ValueError(f"{size - 8 - length} bytes of numbers are not what the header says")
        return {name: _read(file, 8 + length, *place) for name, place in places.items()}


def _place(name: str, entry: Any, size: int) -> Place:
    """Type and shape of a tensor, and where it begins and ends among the numbers."""
    try:
        dtype, shape, (begin, end) = TYPES[entry["dtype"]], torch.Size(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: its entry in the header is not readable: {entry!r}"[:200]) from error
    if not 0 <= begin <= end <= size or end - begin != shape.numel() * dtype.itemsize:
        raise ValueError(f"{name}: {list(shape)} of {entry['dtype']} is not what lies at {begin}..{end}")
    return dtype, shape, begin, end


def _read(file: BinaryIO, start: int, dtype: torch.dtype, shape: torch.Size, begin: int, end: int) -> Tensor:
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    file.seek(start + begin)
    return torch.frombuffer(bytearray(file.read(end - begin)), dtype=dtype).reshape(shape)
