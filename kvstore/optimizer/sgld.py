"""SGLD, and the noise it adds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kvstore.arguments import integer
from kvstore.arrays import BLOCK, Array

from .base import Key, Rates, State, register
from .layerwise import LayerWise

__all__ = ["SGLD"]


@register
class SGLD(LayerWise):
    """Stochastic gradient Langevin dynamics: weights that sample a posterior (Welling & Teh, 2011). lr 0.01::

        w -= lr / 2 * (clip(g) + wd * w)
        w += sqrt(lr) * a standard normal number for each element

    The numbers are a function of (seed, key, update, element) alone: the same on any server and in every run. Give
    another ``seed`` for another chain.
    """

    def __init__(self, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = integer("seed", seed)

    def step(self, key: Key, w: Array, g: Array, state: State, at: Rates) -> None:
        self._rescale_and_clip(g)
        g += at.wd * w
        g *= at.lr / 2
        w -= g
        flat, low = g.reshape(-1), 0
        for block in _normal(self.seed, key, at.count, g.size):
            flat[low : low + block.size] = block
            low += block.size
        g *= float(np.sqrt(at.lr))
        w += g


def _normal(seed: int, key: Key, update: int, size: int) -> Iterator[Array]:
    """``size`` standard normal numbers, in blocks.

    Philox (Salmon et al., 2011) is keyed by seed and key, and counts from the update's number; Box and Muller's
    transform makes two normal numbers of two raw ones, so an element's number does not depend on the others.
    """
    name = f"{seed}:{str(key)!r}" if isinstance(key, str) else f"{seed}:{int(key)}"
    words = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), "<u8")
    philox = np.random.Philox(key=words, counter=[0, update, 0, 0])
    for low in range(0, size, BLOCK):
        count = min(BLOCK, size - low)
        pairs = (count + 1) // 2
        uniform = (philox.random_raw(2 * pairs) >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [0, 1)
        radius = np.sqrt(-2 * np.log1p(-uniform[0::2]))
        angle = 2 * np.pi * uniform[1::2]
        yield np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count]
