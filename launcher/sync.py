"""``--sync-dst-dir``: a copy of this directory on every other host, before anything starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from .carriers import ssh
from .errors import UsageError
from .hosts import Host
from .options import Options


def synchronize(hosts: Sequence[Host], options: Options) -> None:
    """Copy it to all at the same time. Raises UsageError that names the host where that failed."""
    assert options.sync_dst_dir is not None
    elsewhere = [host for host in hosts if not host.is_here]
    if not elsewhere:
        return
    sys.stderr.write(f"pslite: copying this directory to {', '.join(host.name for host in elsewhere)}\n")
    try:
        copies = [
            subprocess.Popen(
                ssh.rsync(host, options.sync_dst_dir, options),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for host in elsewhere
        ]
    except FileNotFoundError:
        raise UsageError("--sync-dst-dir needs the program rsync, here and on every host") from None
    for host, copy in zip(elsewhere, copies, strict=True):
        words = copy.communicate()[1].strip().splitlines()
        if copy.returncode != 0:
            why = words[0] if words else f"exit code {copy.returncode}"
            raise UsageError(f"--sync-dst-dir: {host.name}: rsync failed: {why}")
