"""Optimizers and learning-rate schedulers, with the formulas and defaults of MXNet 1.x."""

from __future__ import annotations

from .adagrad import AdaGrad
from .adam import Adam
from .base import Optimizer, create, register, registered
from .elementwise import Elementwise, Rates, zeros
from .ftrl import Ftrl
from .rmsprop import RMSProp
from .schedulers import CosineScheduler, FactorScheduler, LRScheduler, MultiFactorScheduler, PolyScheduler
from .sgd import NAG, SGD
from .testing import Test
from .updater import Updater

__all__ = [
    "NAG",
    "SGD",
    "AdaGrad",
    "Adam",
    "CosineScheduler",
    "Elementwise",
    "FactorScheduler",
    "Ftrl",
    "LRScheduler",
    "MultiFactorScheduler",
    "Optimizer",
    "PolyScheduler",
    "RMSProp",
    "Rates",
    "Test",
    "Updater",
    "create",
    "register",
    "registered",
    "zeros",
]
