"""The number of a push: its step, and which of its worker's pushes of a key it is in that."""

from __future__ import annotations

STEP_BITS = 32  # of a number are the place in its step; those above are the step


def step_of(number: int) -> int:
    """The step of a push."""
    return number >> STEP_BITS


def within_step(number: int) -> int:
    """Which one it is in its step."""
    return number & (1 << STEP_BITS) - 1
