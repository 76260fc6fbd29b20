"""The memory that XMem and Cutie share: tokens of past frames, read by similarity, consolidated into prototypes.

Atkinson-Shiffrin memory: Cheng & Schwing, "XMem", 2022, arXiv:2207.07115, section 3. A token is one place of a frame at
1/16. Objects that came with the same mask share a bank, since they have the same past.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from actors.networks.tracking.value import Value


@dataclass(frozen=True, slots=True)
class Limits:
    """When frames are stored and how much is kept, for each group of objects that came together.

    Attributes:
        every: frames from one stored frame to the next.
        top_k: tokens that a query reads, at most.
        max_frames: frames stored as they are, at most. The first one always stays. On reaching it the others are
            consolidated; without long-term memory only the newest ones stay.
        min_frames: frames that stay as they are after a consolidation.
        long_term: whether there are prototypes at all.
        prototypes: tokens that a consolidation leaves.
        max_long: tokens of long-term memory at most; the least used ones are forgotten before they are exceeded.
        long_spare: tokens that are forgotten beyond that, so that it is not needed at each consolidation.
        stagger: sensory updates between two stored frames, at most (Cutie only).
    """

    every: int = 5
    top_k: int = 30
    max_frames: int = 10
    min_frames: int = 5
    long_term: bool = True
    prototypes: int = 128
    max_long: int = 10_000
    long_spare: int = 0
    stagger: int = 5

    def __post_init__(self) -> None:
        counts = (self.every, self.top_k, self.max_frames, self.min_frames, self.prototypes, self.stagger)
        if min(counts) < 1 or self.long_spare < 0:
            raise ValueError(f"all but long_spare are at least 1: {self}")
        if self.max_frames <= self.min_frames and self.long_term:
            raise ValueError(f"max_frames {self.max_frames} must be greater than min_frames {self.min_frames}")
        if self.max_long < self.prototypes + self.long_spare + 1 and self.long_term:
            raise ValueError(f"max_long {self.max_long} has no room for {self.prototypes} prototypes and the spare")


@dataclass(frozen=True, slots=True)
class Tokens(Value):
    """N tokens of K objects; the last dimension of every tensor is N.

    Attributes:
        key: [Ck,N]; shrinkage: float32 [1,N], how sharply it matches; value: [K,Cv,N].
        selection: [Ck,N], how much each channel matters as a query; [0,N] for prototypes, which are none.
        use, life: float32 [N], attention received, and readings lived through.
    """

    key: Tensor
    shrinkage: Tensor
    value: Tensor
    selection: Tensor
    use: Tensor
    life: Tensor

    def __len__(self) -> int:
        return self.key.shape[-1]

    def tensors(self) -> tuple[Tensor, ...]:
        return self.key, self.shrinkage, self.value, self.selection, self.use, self.life

    def picked(self, index: slice | Tensor) -> Tokens:
        return Tokens(*(tensor[..., index] for tensor in self.tensors()))

    def used(self, attention: Tensor) -> Tokens:
        return replace(self, use=self.use + attention, life=self.life + 1)


def joined(*parts: Tokens) -> Tokens:
    return Tokens(*(torch.cat(tensors, -1) for tensors in zip(*(part.tensors() for part in parts), strict=True)))


def fresh(key: Tensor, shrinkage: Tensor, value: Tensor, selection: Tensor) -> Tokens:
    """Tokens nobody has read yet."""
    use = torch.zeros(key.shape[-1], device=key.device)
    return Tokens(key, shrinkage, value, selection, use, use + 1e-7)


#: Indices of the tokens to keep: of these usages [N], this many.
Survivors = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class Projected:
    """Key [1,Ck,h,w], shrinkage [1,1,h,w] and selection [1,Ck,h,w] of a frame."""

    key: Tensor
    shrinkage: Tensor
    selection: Tensor

    def tokens(self, value: Tensor) -> Tokens:
        """Of objects with the value [K,Cv,h,w]."""
        return fresh(
            self.key[0].flatten(1), self.shrinkage[0].flatten(1), value.flatten(2), self.selection[0].flatten(1)
        )


@dataclass(frozen=True, slots=True)
class Bank(Value):
    """What is remembered of objects that came together: prototypes, the frame of their mask, and recent frames."""

    long: Tokens
    first: Tokens
    recent: Tokens

    @staticmethod
    def of(first: Tokens) -> Bank:
        none = first.picked(slice(0, 0))
        return Bank(replace(none, selection=none.selection[:0]), first, none)

    @property
    def objects(self) -> int:
        return self.first.value.shape[0]

    def read(self, query: Projected, top_k: int) -> tuple[Tensor, Bank]:
        """What the places of a frame recall, [K,Cv,h,w], and the bank with its use counted."""
        parts = (self.long, self.first, self.recent)
        key = torch.cat([part.key for part in parts], -1)
        shrinkage = torch.cat([part.shrinkage for part in parts], -1)
        value = torch.cat([part.value for part in parts], -1)
        similarity = similarities(key, shrinkage, query.key[0].flatten(1), query.selection[0].flatten(1))
        # Similarities are never positive, so their exponentials need no shift, as in the official code.
        best, index = similarity.topk(min(top_k, len(similarity)), 0)
        weight = best.exp()
        affinity = torch.zeros_like(similarity).scatter(0, index, weight / weight.sum(0))
        recalled = value.flatten(0, 1) @ affinity.to(value.dtype)
        attention = torch.split(affinity.sum(1), [len(part) for part in parts])
        bank = Bank(*(part.used(received) for part, received in zip(parts, attention, strict=True)))
        return recalled.reshape(*value.shape[:2], *query.key.shape[-2:]), bank

    def stored(self, frame: Tokens, limits: Limits, survivors: Survivors) -> Bank:
        """With one frame more, kept within the limits."""
        recent, long = joined(self.recent, frame), self.long
        if not limits.long_term:
            keep = (limits.max_frames - 1) * len(frame)
            return Bank(long, self.first, recent.picked(slice(max(len(recent) - keep, 0), None)))
        if len(recent) >= (limits.max_frames - 1) * len(frame):
            room = limits.max_long - limits.prototypes
            if len(long) >= room:
                long = long.picked(survivors(long.use / long.life, room - limits.long_spare))
            split = len(recent) - (limits.min_frames - 1) * len(frame)
            long = joined(long, consolidated(recent.picked(slice(split)), limits.prototypes))
            recent = recent.picked(slice(split, None))
        return Bank(long, self.first, recent)


def store_frame(
    banks: tuple[Bank, ...], frame: Projected, value: Tensor, limits: Limits, survivors: Survivors
) -> tuple[Bank, ...]:
    """The banks with one frame more; objects of `value` [n,Cv,h,w] beyond those of the banks form a new bank."""
    sizes = [bank.objects for bank in banks]
    *known, new = torch.split(value, [*sizes, len(value) - sum(sizes)])
    stored = tuple(bank.stored(frame.tokens(part), limits, survivors) for bank, part in zip(banks, known, strict=True))
    return (*stored, Bank.of(frame.tokens(new))) if len(new) else stored


def similarities(key: Tensor, shrinkage: Tensor, query: Tensor, selection: Tensor) -> Tensor:
    """Anisotropic L2 similarity (XMem, equation 2), float32 [N,M]: key [Ck,N], shrinkage [1,N], query and selection
    [Ck,M]. In float32 always: differences of squares."""
    key, shrinkage, query, selection = (x.float() for x in (key, shrinkage, query, selection))
    key = key.T
    squares = key.square() @ selection
    products = key @ (query * selection)
    constant = (selection * query.square()).sum(0, keepdim=True)
    return (2 * products - squares - constant) * shrinkage.T / sqrt(key.shape[1])


def consolidated(tokens: Tokens, prototypes: int) -> Tokens:
    """The most used tokens as prototypes, each with what it recalls of all of them (XMem, 3.3)."""
    index = (tokens.use / tokens.life).topk(min(prototypes, len(tokens))).indices
    key = tokens.key[:, index]
    affinity = similarities(tokens.key, tokens.shrinkage, key, tokens.selection[:, index]).softmax(0)
    value = tokens.value @ affinity.to(tokens.value.dtype)
    return fresh(key, tokens.shrinkage @ affinity, value, tokens.selection[:0, index])
