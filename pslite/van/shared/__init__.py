"""Shared memory of the processes of one host: who made an array lets others read it where it is.

A process writes arrays into an ``Arena``; its ``Channel`` hands descriptors of the arena's segments to its peers, and
maps theirs, read-only. A peer gets a descriptor before the message that mentions the segment, so nobody waits.
"""

from __future__ import annotations

from .arena import Arena, Block, Location, available
from .channel import Channel, Segment
from .extents import Extents
from .journal import Journal
from .keeper import Keeper
from .kept import KeptArena

__all__ = [
    "Arena", "Block", "Channel", "Extents", "Journal", "Keeper", "KeptArena", "Location", "Segment", "available",
]  # fmt: skip
