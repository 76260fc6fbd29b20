"""DeAOT: decoupling features in hierarchical propagation (Yang & Yang, 2022, arXiv:2210.09782)."""

from actors.networks.tracking.deaot.network import DeAOT, DeAOTLimits, DeAOTMemory, detect

__all__ = ["DeAOT", "DeAOTLimits", "DeAOTMemory", "detect"]
