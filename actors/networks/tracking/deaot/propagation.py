"""Gated propagation modules: attention that carries what objects look like and which they are in two branches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.networks.tracking.value import Value

#: How far local attention reaches in both directions, in places of 16 pixels.
_REACH = 7


@dataclass(frozen=True, slots=True)
class LayerMemory(Value):
    """What one layer stores of T frames: key [T,h,w,C/2], value and identity [T,h,w,2C]."""

    key: Tensor
    value: Tensor
    identity: Tensor

    def picked(self, frames: list[int]) -> LayerMemory:
        return LayerMemory(self.key[frames], self.value[frames], self.identity[frames])

    def after(self, older: LayerMemory) -> LayerMemory:
        """These frames and older ones, newest first."""
        pairs = ((self.key, older.key), (self.value, older.value), (self.identity, older.identity))
        return LayerMemory(*(torch.cat(pair) for pair in pairs))

    @property
    def both(self) -> Tensor:
        """[T*h*w,4C]: the values of both branches."""
        return torch.cat([self.value, self.identity], -1).flatten(0, 2)


class DepthwiseConv(nn.Module):
    """5x5 on the map [h,w,C] that a sequence of places is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.permute(2, 0, 1)[None])
        return y[0].permute(1, 2, 0)


class GatedPropagation(nn.Module):
    """Values gathered by attention, gated, and mixed with those around them.

    Each kind adds the layers in front of its attention first, then the common ones: the order of the state dict.
    """

    dw_conv: DepthwiseConv
    projection: nn.Linear

    def _add_output(self, channels: int) -> None:
        self.dw_conv = DepthwiseConv(4 * channels)
        self.projection = nn.Linear(4 * channels, 2 * channels)

    def _gathered(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor | None = None) -> Tensor:
        """query [h,w,C/2], key [N,C/2], value [N,4C], gate [h,w,4C], bias [h*w,N]: both branches [h,w,2C]."""
        gathered = F.scaled_dot_product_attention(query.flatten(0, 1)[None], key[None], value[None], attn_mask=bias)
        y: Tensor = self.projection(self.dw_conv(gathered.reshape(gate.shape) * gate))
        return y


class LongTermPropagation(GatedPropagation):
    """From all places of all stored frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._add_output(channels)

    def forward(self, query: Tensor, memory: LayerMemory, gate: Tensor) -> Tensor:
        return self._gathered(query, memory.key.flatten(0, 2), memory.both, gate)


class ShortTermPropagation(GatedPropagation):
    """From the places of the last frame around each, with a bias for each of the 15x15 that the query chooses."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.relative_emb_k = nn.Conv2d(channels // 2, (2 * _REACH + 1) ** 2, 1)
        self._add_output(channels)

    def forward(self, query: Tensor, memory: LayerMemory, gate: Tensor) -> Tensor:
        height, width = query.shape[:2]
        relative = self.relative_emb_k(query.permute(2, 0, 1)[None])[0].flatten(1).T
        # One more column takes what would lie outside of the picture.
        bias = relative.new_full((height * width, height * width + 1), -torch.inf)
        bias = bias.scatter(1, _window(height, width, query.device), relative)[:, :-1]
        return self._gathered(query, memory.key.flatten(0, 2), memory.both, gate, bias)


class SelfPropagation(GatedPropagation):
    """From all places of the frame itself; both branches choose together where from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear_QK = nn.Linear(2 * channels, channels // 2)
        self.linear_V1 = nn.Linear(channels, 2 * channels)
        self.linear_V2 = nn.Linear(channels, 2 * channels)
        self.linear_U1 = nn.Linear(channels, 2 * channels)
        self.linear_U2 = nn.Linear(channels, 2 * channels)
        self._add_output(channels)

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """x and identity [h,w,C]: both branches [h,w,2C]."""
        query = self.linear_QK(torch.cat([x, identity], -1))
        value = F.silu(torch.cat([self.linear_V1(x), self.linear_V2(identity)], -1))
        gate = F.silu(torch.cat([self.linear_U1(x), self.linear_U2(identity)], -1))
        return self._gathered(query, query.flatten(0, 1), value.flatten(0, 1), gate)


@lru_cache(maxsize=8)
def _window(height: int, width: int, device: torch.device) -> Tensor:
    """For each place the 15x15 places around it, row by row, [h*w,225]; h*w for those outside of the picture."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used outside of it later
        y, x = torch.arange(height, device=device), torch.arange(width, device=device)
        offset = torch.arange(-_REACH, _REACH + 1, device=device)
        near_y, near_x = (y[:, None] + offset)[:, None, :, None], (x[:, None] + offset)[None, :, None, :]
        inside = (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
        return torch.where(inside, near_y * width + near_x, height * width).flatten(2).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class Look:
    """A layer's projections of a frame: query, which is the key too, [h,w,C/2], value [h,w,2C], gate [h,w,4C], and
    normalised identity features [h,w,C], None in the first layer."""

    query: Tensor
    value: Tensor
    gate: Tensor
    known: Tensor | None


class PropagationModule(nn.Module):
    """One layer: from long-term memory and the last frame, then within the frame."""

    def __init__(self, channels: int, *, first: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.linear_QV = nn.Linear(channels, channels // 2 + 2 * channels)
        self.linear_U = nn.Linear(channels, 2 * channels)
        self.id_norm1: nn.Module | None = None
        if first:
            self.linear_ID_V = nn.Linear(channels, 2 * channels)
        else:
            self.id_norm1 = nn.LayerNorm(channels)
            self.linear_ID_V = nn.Linear(2 * channels, 2 * channels)
            self.linear_ID_U = nn.Linear(channels, 2 * channels)
        self.long_term_attn = LongTermPropagation(channels)
        self.short_term_attn = ShortTermPropagation(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.id_norm2 = nn.LayerNorm(channels)
        self.self_attn = SelfPropagation(channels)

    def look(self, x: Tensor, identity: Tensor | None) -> Look:
        channels = x.shape[-1]
        x = self.norm1(x)
        query, value = self.linear_QV(x).split([channels // 2, 2 * channels], -1)
        gate = F.silu(self.linear_U(x))
        if identity is None or self.id_norm1 is None:
            return Look(query, F.silu(value), torch.cat([gate, torch.ones_like(gate)], -1), None)
        known = self.id_norm1(identity)
        return Look(query, F.silu(value), torch.cat([gate, F.silu(self.linear_ID_U(known))], -1), known)

    def remembered(self, look: Look, embedding: Tensor) -> LayerMemory:
        """What is stored of a frame once it is known which object is where: embedding [h,w,C]."""
        features = embedding if look.known is None else torch.cat([look.known, embedding], -1)
        return LayerMemory(look.query[None], look.value[None], F.silu(self.linear_ID_V(features))[None])

    def forward(
        self, x: Tensor, identity: Tensor | None, look: Look, long: LayerMemory, last: LayerMemory
    ) -> tuple[Tensor, Tensor]:
        found = self.long_term_attn(look.query, long, look.gate) + self.short_term_attn(look.query, last, look.gate)
        more, more_identity = found.chunk(2, -1)
        x, identity = x + more, more_identity if identity is None else identity + more_identity
        more, more_identity = self.self_attn(self.norm2(x), self.id_norm2(identity)).chunk(2, -1)
        return x + more, identity + more_identity


class Propagation(nn.Module):
    """The layers. Frames come as [h,w,C]; there is one `LayerMemory` for each layer."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PropagationModule(channels, first=index == 0) for index in range(layers))
        self.decoder_norms = nn.ModuleList([nn.ModuleDict({"gn": nn.GroupNorm(2, 2 * channels)})])

    def forward(
        self, x: Tensor, long: tuple[LayerMemory, ...], last: tuple[LayerMemory, ...]
    ) -> tuple[Tensor, list[Look]]:
        """What the decoder needs, [1,2C,h,w], and what `remembered` does."""
        identity: Tensor | None = None
        looks = []
        for layer, memory, before in zip(self._layers(), long, last, strict=True):
            look = layer.look(x, identity)
            x, identity = layer(x, identity, look, memory, before)
            looks.append(look)
        assert identity is not None
        norm = self.get_submodule("decoder_norms.0.gn")
        y: Tensor = norm(torch.cat([x, identity], -1).permute(2, 0, 1)[None])
        return y, looks

    def remembered(self, looks: list[Look], embedding: Tensor) -> tuple[LayerMemory, ...]:
        return tuple(layer.remembered(look, embedding) for layer, look in zip(self._layers(), looks, strict=True))

    def referred(self, x: Tensor, embedding: Tensor) -> tuple[LayerMemory, ...]:
        """What is stored of a frame that came with a mask: each layer propagates from the frame itself."""
        identity: Tensor | None = None
        memories = []
        for layer in self._layers():
            look = layer.look(x, identity)
            memory = layer.remembered(look, embedding)
            x, identity = layer(x, identity, look, memory, memory)
            memories.append(memory)
        return tuple(memories)

    def _layers(self) -> Iterator[PropagationModule]:
        return (layer for layer in self.layers if isinstance(layer, PropagationModule))
