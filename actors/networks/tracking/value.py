"""Memories as values: frozen dataclasses of tensors and integers that turn into named numpy arrays and back."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = Mapping[str, NDArray[np.generic]]


class Value:
    """Base of frozen dataclasses whose fields are tensors, ints, other values, and tuples of ints or of values.

    Every tensor is laid out when the value is made as it would come back from a file, so that what is computed from
    it has the same bits either way: convolutions and matrix products may add in another order for other strides.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        for field in fields(self):
            content = getattr(self, field.name)
            if isinstance(content, Tensor):
                object.__setattr__(self, field.name, _settled(content))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(content.nbytes for _, content in self._leaves() if isinstance(content, Tensor))

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The whole content by dotted names, in plain numpy types, for `savez` without pickle.

        Arrays of tensors on the CPU are views of them: not to be written to.
        """
        return {
            name: content.detach().cpu().numpy() if isinstance(content, Tensor) else np.asarray(content, np.int64)
            for name, content in self._leaves()
        }

    def _leaves(self) -> Iterator[tuple[str, Tensor | int | tuple[int, ...]]]:
        for field in fields(self):
            content = getattr(self, field.name)
            parts = {field.name: content}
            if isinstance(content, tuple) and content and isinstance(content[0], Value):
                parts = {f"{field.name}.{index}": part for index, part in enumerate(content)}
            for name, part in parts.items():
                if isinstance(part, Value):
                    yield from ((f"{name}.{below}", leaf) for below, leaf in part._leaves())
                else:
                    yield name, part

    @classmethod
    def from_arrays(cls, arrays: Arrays, device: torch.device | str = "cpu") -> Self:
        """The value that gave these arrays, its tensors on `device`, sharing no memory with the arrays.

        Raises:
            ValueError: an array is missing: they are not this kind of value's.
        """
        hints = typing.get_type_hints(cls)
        return cls(**{f.name: _restored(hints[f.name], f.name, arrays, device) for f in fields(cls)})


def _restored(hint: Any, name: str, arrays: Arrays, device: torch.device | str) -> Any:
    if isinstance(hint, type) and issubclass(hint, Value):
        return hint.from_arrays(_below(name, arrays), device)
    item = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    if item is not None and item is not int:
        parts: list[Value] = []
        while part := _below(f"{name}.{len(parts)}", arrays):
            parts.append(item.from_arrays(part, device))
        return tuple(parts)
    if name not in arrays:
        raise ValueError(f"the arrays lack {name}: they are not this tracker's memory")
    if hint is Tensor:
        # A copy in torch's own alignment: the array may be a read-only view of shared memory.
        return torch.tensor(arrays[name], device=device)
    return tuple(int(x) for x in arrays[name]) if item is int else int(arrays[name])


def _below(name: str, arrays: Arrays) -> Arrays:
    prefix = f"{name}."
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def _settled(x: Tensor) -> Tensor:
    """x in standard strides in a storage of its own; itself where it is so already."""
    own = x.storage_offset() == 0 and x.untyped_storage().nbytes() == x.nbytes
    if own and x.stride() == torch.empty(x.shape, device="meta").stride():
        return x
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)
