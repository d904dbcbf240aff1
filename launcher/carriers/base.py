"""What a carrier is. It starts one command on a host, and carries its stdin, stdout and stderr."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from launcher.hosts import Host
from launcher.options import Options


class Carrier(Protocol):
    """A module of this package, imported when its launcher is chosen."""

    def hosts(self, options: Options, environ: Mapping[str, str]) -> Sequence[Host]:
        """The hosts that there are. Raises UsageError."""

    def argv(self, host: Host, options: Options) -> list[str]:
        """The command that runs an agent there."""


def load(launcher: str) -> Carrier:
    """The carrier of ``--launcher NAME``."""
    return cast(Carrier, importlib.import_module(f".{launcher}", __package__))
