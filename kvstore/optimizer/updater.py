"""An optimizer with the states of the keys that it updates."""

from __future__ import annotations

from .base import Key, Optimizer, State, Weight

__all__ = ["Updater"]


class Updater:
    """``updater(key, grad, weight)`` updates weight in place; state is made when a key is first seen.

    Not thread-safe: whoever holds it holds its lock.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.states: dict[Key, State] = {}
        self.counts: dict[Key, int] = {}  # updates done, per key

    def __call__(self, key: Key, grad: Weight, weight: Weight) -> None:
        """grad, weight: arrays of one shape and dtype."""
        if key not in self.states:
            self.states[key] = self.optimizer.create_state_multi_precision(key, weight)
        count = self.counts.get(key, 0) + 1
        self.optimizer.update_multi_precision(key, weight, grad, self.states[key], count)
        self.counts[key] = count
