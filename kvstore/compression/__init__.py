"""Gradient compression: codecs by name, and error feedback."""

from __future__ import annotations

from .base import Codec, cached, check, create, register, registered, salt
from .blockwise import Blockwise
from .feedback import Feedback
from .halves import BFloat16, Float16
from .quantized import QSGD, Int4, Int8, TernGrad
from .sign import Sign
from .sparse import RandomK, TopK
from .threshold import OneBit, TwoBit

__all__ = [
    "QSGD",
    "BFloat16",
    "Blockwise",
    "Codec",
    "Feedback",
    "Float16",
    "Int4",
    "Int8",
    "OneBit",
    "RandomK",
    "Sign",
    "TernGrad",
    "TopK",
    "TwoBit",
    "cached",
    "check",
    "create",
    "register",
    "registered",
    "salt",
]
