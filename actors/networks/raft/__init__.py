"""RAFT (Teed & Deng, 2020, arXiv:2003.12039) and GMA (Jiang et al., 2021, arXiv:2104.02409): dense optical flow."""

from actors.networks.raft.flow import RAFT, detect, estimate
from actors.networks.raft.gma import GMA, detect_gma

__all__ = ["GMA", "RAFT", "detect", "detect_gma", "estimate"]
