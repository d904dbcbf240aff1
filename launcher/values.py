"""What the values of options may be; each raises ArgumentTypeError with the bad one."""

from __future__ import annotations

import argparse
import shlex

_MOST_SHARDS = 128  # the orders to one process that it has them all must fit into a socket


def count(text: str) -> int:
    """A number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number that is at least 1")
    return int(text)


def bounds(text: str) -> tuple[int, int]:
    """``MIN:MAX``."""
    least, colon, most = text.partition(":")
    if not (colon and least.isdigit() and most.isdigit() and text.isascii() and 1 <= int(least) <= int(most)):
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN:MAX, two numbers that are at least 1")
    return int(least), int(most)


def shards(text: str) -> int:
    """A number of shards."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MOST_SHARDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_MOST_SHARDS}")
    return int(text)


def restarts(text: str) -> int:
    """A number from 0."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number that is at least 0")
    return int(text)


def seconds_of(text: str) -> float:
    """A time in seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds that is at least 0")
    return seconds


def words_of(text: str) -> tuple[str, ...]:
    """A command, split like a shell does."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    if not words:
        raise argparse.ArgumentTypeError("the command is empty")
    return words


def volume(text: str) -> tuple[str, str]:
    """A claim, and the path at which it is seen."""
    claim, _, path = text.partition(":")
    return claim, path
