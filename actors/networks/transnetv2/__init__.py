"""TransNet V2 (Souček & Lokoč, 2020, arXiv:2008.04838): where a film's shots change."""

from actors.networks.transnetv2.network import TransNetV2, detect
from actors.networks.transnetv2.windows import Scores, finish, step

__all__ = ["Scores", "TransNetV2", "detect", "finish", "step"]
