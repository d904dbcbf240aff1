"""LARS and LBSGD: SGD with a rate for each layer, for large batches."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from kvstore.arguments import integer, number
from kvstore.arrays import Array
from pslite.errors import ConfigError

from .base import Key, Rates, State, Weight, register
from .elementwise import zeros
from .layerwise import LayerWise, norm, per_row

__all__ = ["LARS", "LBSGD"]

_PLAIN = ("gamma", "beta", "bias")  # ends of names whose rate is not scaled
_STRATEGIES = ("linear", "power2", "sqrt", "lars")


@register
class LARS(LayerWise):
    """Layer-wise adaptive rates (You et al., 2017). lr 0.01::

        rate = lr * eta * norm(w) / (norm(g) + wd * norm(w) + eps)
        d = clip(g) + wd * w
        mom = momentum * (lr / last lr) * mom - rate * d
        w += mom

    The rate is lr if either norm is 0, and for keys whose name (``param_idx2name``, or the key) ends in gamma, beta or
    bias; with ``param_idx2name``, weight decay is off for names that do not end in _weight. The factor lr / last lr
    (Goyal et al., 2017) is that of ``momentum_correction``; slot ``last_lr`` has a value for each row. With momentum 0
    there is no state. Of a row-sparse gradient under ``lazy_update``, the norms are those of its rows.
    """

    decayed_names: ClassVar[tuple[str, ...]] = ("_weight",)

    def __init__(
        self,
        momentum: float = 0.0,
        lazy_update: bool = True,
        eta: float = 0.001,
        eps: float = 0.0,
        momentum_correction: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.momentum = number("momentum", momentum)
        self.lazy_update = bool(lazy_update)
        self.eta = number("eta", eta)
        self.eps = number("eps", eps)
        self.momentum_correction = bool(momentum_correction)

    def create_state(self, key: Key, weight: Weight) -> State:
        if not self.momentum:
            return {}
        slots = {"mom": zeros(weight)}
        return {**slots, "last_lr": per_row(weight)} if self.momentum_correction else slots

    def step(self, key: Key, w: Array, g: Array, state: State, at: Rates) -> None:
        g *= float(self.rescale_grad)
        rate = at.lr * self._ratio(key, w, g, at.wd)
        self._clip(g)
        g += at.wd * w
        g *= rate
        if "mom" not in state:
            w -= g
            return
        mom = state["mom"]
        mom *= self.momentum
        if self.momentum_correction and "last_lr" in state:
            self._correct(mom, state["last_lr"], at.lr)
        mom -= g
        w += mom

    def _ratio(self, key: Key, w: Array, g: Array, wd: float) -> float:
        if str(self.param_idx2name.get(key, key)).endswith(_PLAIN):
            return 1.0
        size, slope = norm(w), norm(g)
        return self.eta * size / (slope + wd * size + self.eps) if size > 0 and slope > 0 else 1.0

    @staticmethod
    def _correct(mom: Array, last: Array, lr: float) -> None:
        """``mom *= lr / last``, where there was a last lr above 0; ``last = lr``."""
        factor = np.ones_like(last)
        np.divide(last.dtype.type(lr), last, out=factor, where=last != 0)
        mom *= factor
        last[...] = lr


@register
class LBSGD(LayerWise):
    """SGD for large batches made of ``batch_scale`` pushes, with a warm-up of the rate. lr 0.01::

        sum += gradient as pushed
        every batch_scale-th time:  d = clip(rescale_grad * sum / batch_scale) + wd * w;  sum = 0
                                    mom = momentum * mom - lr * scale * d
                                    w += mom

    scale rises from 1 to batch_scale over warmup_epochs * updates_per_epoch updates, 'linear', by 'power2' or 'sqrt';
    with 'lars' it is sqrt(|w|^2 / (|sum / batch_scale|^2 + wd * |w|^2)), kept to [0.01, 100]. Counting begins at
    begin_epoch. num_epochs has no effect, as in MXNet 1.x, which is also why lr is the schedule's before this update.
    """

    def __init__(
        self,
        momentum: float = 0.0,
        multi_precision: bool = False,
        warmup_strategy: str = "linear",
        warmup_epochs: int = 5,
        batch_scale: int = 1,
        updates_per_epoch: int = 32,
        begin_epoch: int = 0,
        num_epochs: int = 60,
        **kwargs: Any,
    ) -> None:
        super().__init__(multi_precision=multi_precision, **kwargs)
        if warmup_strategy not in _STRATEGIES:
            raise ConfigError(name="warmup_strategy", value=f"{warmup_strategy!s:.80}", allowed=f"one of {_STRATEGIES}")
        self.momentum = number("momentum", momentum)
        self.warmup_strategy = warmup_strategy
        self.warmup_epochs = integer("warmup_epochs", warmup_epochs)
        self.batch_scale = integer("batch_scale", batch_scale, least=1)
        self.updates_per_epoch = integer("updates_per_epoch", updates_per_epoch)
        self.begin_epoch = integer("begin_epoch", begin_epoch)
        self.num_epochs = integer("num_epochs", num_epochs)

    def create_state(self, key: Key, weight: Weight) -> State:
        names = ["mom"] * (self.momentum != 0) + ["sum"] * (self.batch_scale > 1)
        return {name: zeros(weight) for name in names}

    def _lr(self, key: Key, count: int) -> float:
        return super()._lr(key, count - 1)

    def step(self, key: Key, w: Array, g: Array, state: State, at: Rates) -> None:
        done = self.begin_epoch * self.updates_per_epoch + at.count - self.begin_num_update
        if "sum" in state:
            total = state["sum"]
            total += g
            if done % self.batch_scale:
                return
            np.divide(total, self.batch_scale, out=g)
            total[...] = 0
        rate = at.lr * (self._lars(w, g, at.wd) if self.warmup_strategy == "lars" else self._warm(done))
        self._rescale_and_clip(g)
        g += at.wd * w
        g *= -rate
        if "mom" in state:
            mom = state["mom"]
            mom *= self.momentum
            mom += g
            g = mom
        w += g

    def _warm(self, done: int) -> float:
        steps = self.warmup_epochs * self.updates_per_epoch
        if done >= steps:
            return self.batch_scale
        if steps <= 1:
            return 1.0
        part = done / steps
        part = {"linear": part, "power2": part * part, "sqrt": math.sqrt(part)}[self.warmup_strategy]
        return 1 + (self.batch_scale - 1) * part

    @staticmethod
    def _lars(w: Array, g: Array, wd: float) -> float:
        size, slope = norm(w) ** 2, norm(g) ** 2
        return min(max(math.sqrt(size / (slope + wd * size + 1e-18)), 0.01), 100.0)
