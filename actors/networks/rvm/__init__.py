"""Robust Video Matting (Lin et al., 2021, arXiv:2108.11515): a recurrent matting network for people."""

from actors.networks.rvm.decoder import States
from actors.networks.rvm.matting import MattingNetwork, build_rvm

__all__ = ["MattingNetwork", "States", "build_rvm"]
