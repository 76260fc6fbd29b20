"""BiRefNet (Zheng et al., 2024, arXiv:2401.03407): fine masks of the foreground at high resolution."""

from actors.networks.birefnet.network import BiRefNet, detect

__all__ = ["BiRefNet", "detect"]
