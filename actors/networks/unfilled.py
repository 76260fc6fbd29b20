"""Networks that are given their weights at once are built without drawing random ones first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

_DRAWN = (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_)


class Unfilled(TorchFunctionMode):
    """While it is entered, torch's layers leave their weights as the memory was.

    Drawing takes longer than reading a checkpoint: a second for a hundred million.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if function in _DRAWN else function(*args, **kwargs)
