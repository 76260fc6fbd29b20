"""This process on a GPU: the fence around its share, what it holds, and whether CUDA still answers it."""

from __future__ import annotations

import os

import torch

from cluster.profiles import figures_for


def fence(share: float) -> None:
    """Makes the share, context included, real: an allocation beyond it fails here, not in a neighbour's process."""
    context = figures_for(torch.cuda.get_device_name(0), os.environ).context_mib * 2**20
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(max(0.01, share - context / total))


def memory(share: float) -> tuple[int, int]:
    """Bytes of the GPU that torch holds in this process, and that the share allows."""
    return torch.cuda.memory_reserved(), round(share * torch.cuda.get_device_properties(0).total_memory)


def uuid() -> str:
    """The driver's name of the card."""
    return str(torch.cuda.get_device_properties(0).uuid)


def is_lost() -> bool:
    """Whether CUDA fails whatever this process asks of it, as it does for good after an illegal access or a reset."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.ones(1, device="cuda").add(1).item()
    except torch.OutOfMemoryError:
        return False
    except RuntimeError:
        return True
    return False
