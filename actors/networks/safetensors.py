"""Safetensors files: a JSON header of names, types, shapes and places, then plain numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file, by name (format: github.com/huggingface/safetensors).

    Raises:
        ValueError: the file is not of this format, or is cut off.
    """
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= length <= min(LARGEST_HEADER, len(content) - 8):
        raise ValueError(f"a header of {length} bytes in a file of {len(content)}")
    header: Any = json.loads(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    header.pop("__metadata__", None)
    return {name: _tensor(name, place, content, 8 + length) for name, place in header.items()}


def _tensor(name: str, place: Any, content: bytearray, start: int) -> Tensor:
    try:
        dtype, shape, (begin, end) = TYPES[place["dtype"]], torch.Size(place["shape"]), place["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: its entry in the header is not readable: {place!r}"[:200]) from error
    if not 0 <= begin <= end <= len(content) - start or end - begin != shape.numel() * dtype.itemsize:
        raise ValueError(f"{name}: {list(shape)} of {place['dtype']} is not what lies at {begin}..{end}")
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    # A copy, since numbers need not lie at a multiple of their size.
    return (
        torch.frombuffer(content, dtype=torch.uint8, count=end - begin, offset=start + begin)
        .clone()
        .view(dtype)
        .reshape(shape)
    )
