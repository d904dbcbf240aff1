"""The optimizer of MXNet's own tests."""

from __future__ import annotations

from kvstore.arrays import Array

from .base import Key, State, Weight, register
from .elementwise import Elementwise, Rates, zeros

__all__ = ["Test"]


@register
class Test(Elementwise):
    """Adds what is pushed, to make expected values plain: ``w += g``; the state ``copy`` holds the new w."""

    __test__ = False  # pytest is not to collect it

    def create_state(self, key: Key, weight: Weight) -> State:
        return {"copy": zeros(weight)}

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        w += g
        state["copy"][...] = w
