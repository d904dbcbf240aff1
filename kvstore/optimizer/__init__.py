"""Optimizers and learning-rate schedulers, with the formulas and defaults of MXNet 1.x."""

from __future__ import annotations

from .adadelta import AdaDelta
from .adagrad import AdaGrad
from .adam import AdaBelief, Adam, AdamW
from .adamax import Adamax, Nadam
from .base import Optimizer, Rates, create, register, registered
from .dcasgd import DCASGD
from .elementwise import Elementwise, zeros
from .ftml import FTML
from .ftrl import Ftrl
from .group_adagrad import GroupAdaGrad
from .lamb import LAMB, LANS
from .lars import LARS, LBSGD
from .layerwise import LayerWise
from .rmsprop import RMSProp
from .schedulers import CosineScheduler, FactorScheduler, LRScheduler, MultiFactorScheduler, PolyScheduler
from .sgd import NAG, SGD, ccSGD
from .sgld import SGLD
from .signum import Signum
from .testing import Test
from .updater import Updater

__all__ = [
    "DCASGD",
    "FTML",
    "LAMB",
    "LANS",
    "LARS",
    "LBSGD",
    "NAG",
    "SGD",
    "SGLD",
    "AdaBelief",
    "AdaDelta",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Adamax",
    "CosineScheduler",
    "Elementwise",
    "FactorScheduler",
    "Ftrl",
    "GroupAdaGrad",
    "LRScheduler",
    "LayerWise",
    "MultiFactorScheduler",
    "Nadam",
    "Optimizer",
    "PolyScheduler",
    "RMSProp",
    "Rates",
    "Signum",
    "Test",
    "Updater",
    "ccSGD",
    "create",
    "register",
    "registered",
    "zeros",
]
