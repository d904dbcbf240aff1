"""Learning rates as functions of the number of updates: MXNet's four schedulers.

Unlike MXNet's they keep no state, so one scheduler serves any number of keys, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from kvstore.arguments import check_described, check_taken, decode, encode, integer, number, parameters
from pslite.errors import ConfigError

__all__ = ["CosineScheduler", "FactorScheduler", "LRScheduler", "MultiFactorScheduler", "PolyScheduler"]

_REGISTRY: dict[str, type[LRScheduler]] = {}  # class name -> class; grows when a subclass is defined


class LRScheduler:
    """The learning rate after ``num_update`` updates: ``scheduler(num_update)``.

    base_lr: the rate to start from; an optimizer with a ``learning_rate`` of its own overwrites it.
    warmup_steps: for so many updates the rate rises from warmup_begin_lr to base_lr ('linear' warmup_mode), or stays
    at warmup_begin_lr ('constant').

    A subclass defines ``schedule``, and keeps each constructor argument in an attribute of that name, by which it
    travels to the servers. Raises ConfigError for arguments out of range.
    """

    def __init_subclass__(cls) -> None:
        _REGISTRY[cls.__name__] = cls

    def __init__(
        self,
        base_lr: float = 0.01,
        warmup_steps: int = 0,
        warmup_begin_lr: float = 0.0,
        warmup_mode: str = "linear",
    ) -> None:
        self.base_lr = number("base_lr", base_lr)
        self.warmup_steps = integer("warmup_steps", warmup_steps)
        self.warmup_begin_lr = number("warmup_begin_lr", warmup_begin_lr)
        self.warmup_mode = warmup_mode
        if self.warmup_begin_lr > self.base_lr:
            raise ConfigError(name="warmup_begin_lr", value=warmup_begin_lr, allowed=f"at most base_lr, {base_lr}")
        if warmup_mode not in ("linear", "constant"):
            raise ConfigError(name="warmup_mode", value=str(warmup_mode), allowed="give 'linear' or 'constant'")

    def __call__(self, num_update: int) -> float:
        if num_update >= self.warmup_steps:
            return self.schedule(num_update)
        if self.warmup_mode == "constant":
            return self.warmup_begin_lr
        return self.warmup_begin_lr + (self.base_lr - self.warmup_begin_lr) * num_update / self.warmup_steps

    def schedule(self, num_update: int) -> float:
        """The rate from ``warmup_steps`` on."""
        raise NotImplementedError(f"{type(self).__name__} does not define schedule(num_update)")

    def to_wire(self) -> list[Any]:
        """``[class name, {argument: value}]``, of the attributes as they are now."""
        cls = type(self)
        if _REGISTRY.get(cls.__name__) is not cls:
            raise ConfigError(name="lr_scheduler", value=cls.__name__, allowed="give the class a name of its own")
        return [cls.__name__, {name: encode(name, getattr(self, name)) for name in parameters(cls)}]

    @staticmethod
    def from_wire(wire: Any) -> LRScheduler:
        """The scheduler that ``to_wire`` described; raises ConfigError for an unknown class or wrong arguments."""
        check_described("lr_scheduler", wire)
        cls = _REGISTRY.get(wire[0]) if isinstance(wire[0], str) else None
        if cls is None:
            allowed = "one of " + ", ".join(sorted(_REGISTRY)) + ", or a subclass defined above create() and serve()"
            raise ConfigError(name="lr_scheduler", value=f"{wire[0]!s:.100}", allowed=allowed)
        check_taken(wire, parameters(cls))
        return cls(**{name: decode(name, value) for name, value in wire[1].items()})


class FactorScheduler(LRScheduler):
    """``base_lr * factor^k`` after k times ``step`` updates (from update k*step + 1 on), at least stop_factor_lr."""

    def __init__(self, step: int, factor: float = 1.0, stop_factor_lr: float = 1e-8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.step = integer("step", step, least=1)
        self.factor = _factor(factor)
        self.stop_factor_lr = number("stop_factor_lr", stop_factor_lr)

    def schedule(self, num_update: int) -> float:
        drops = max(num_update - 1, 0) // self.step
        return max(self.base_lr * self.factor**drops, self.stop_factor_lr) if drops else self.base_lr


class MultiFactorScheduler(LRScheduler):
    """``base_lr`` times ``factor`` for each element of ``step`` (increasing update counts) that has been passed."""

    def __init__(self, step: Sequence[int], factor: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(step, (list, tuple)) or not step:
            raise ConfigError(name="step", value=str(step), allowed="give a list of update counts")
        self.step = [integer("step", one, least=1) for one in step]
        if any(later <= earlier for earlier, later in pairwise(self.step)):
            raise ConfigError(name="step", value=str(step), allowed="give increasing update counts")
        self.factor = _factor(factor)

    def schedule(self, num_update: int) -> float:
        return self.base_lr * self.factor ** sum(num_update > step for step in self.step)


class _Descent(LRScheduler):
    """From base_lr, at the end of the warm-up, down to ``final_lr`` at update ``max_update``, and constant after."""

    def __init__(self, max_update: int, final_lr: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_update = integer("max_update", max_update, least=self.warmup_steps + 1)
        self.final_lr = number("final_lr", final_lr)

    def schedule(self, num_update: int) -> float:
        done = (min(num_update, self.max_update) - self.warmup_steps) / (self.max_update - self.warmup_steps)
        return self.final_lr + (self.base_lr - self.final_lr) * self.remaining(done)

    def remaining(self, done: float) -> float:
        """How much of the way down remains, 1 to 0, when ``done`` of the updates, 0 to 1, are done."""
        raise NotImplementedError


class PolyScheduler(_Descent):
    """From base_lr down to ``final_lr`` at ``max_update`` as a polynomial of power ``pwr``."""

    def __init__(
        self, max_update: int, base_lr: float = 0.01, pwr: float = 2, final_lr: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(max_update, final_lr, base_lr=base_lr, **kwargs)
        self.pwr = number("pwr", pwr)

    def remaining(self, done: float) -> float:
        return float((1 - done) ** self.pwr)


class CosineScheduler(_Descent):
    """From base_lr down to ``final_lr`` at ``max_update`` along half a cosine (Loshchilov & Hutter, SGDR, 2017)."""

    def __init__(self, max_update: int, base_lr: float = 0.01, final_lr: float = 0.0, **kwargs: Any) -> None:
        super().__init__(max_update, final_lr, base_lr=base_lr, **kwargs)

    def remaining(self, done: float) -> float:
        return (1 + math.cos(math.pi * done)) / 2


def _factor(value: Any) -> float:
    factor = number("factor", value)
    if not 0 <= factor <= 1:
        raise ConfigError(name="factor", value=factor, allowed="give a factor from 0 to 1, so that the rate falls")
    return factor
