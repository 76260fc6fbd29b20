"""Cutie: putting the object back into video object segmentation (Cheng et al., 2023, arXiv:2310.12982)."""

from actors.networks.tracking.cutie.network import Cutie, CutieMemory, detect

__all__ = ["Cutie", "CutieMemory", "detect"]
