"""A Ray cluster of one node, for tests: with ports and a directory of its own, beside any other one."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.system.jobs import environment

_LONGEST = 60.0  # seconds for a cluster to start or to end, which takes it four
_CPUS = 8

#: Workers are started when they are needed, and nobody is told of the use of Ray.
_SETTINGS = {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@contextlib.contextmanager
def ray_cluster() -> Iterator[str]:
    """A running cluster; gives its address."""
    directory = tempfile.mkdtemp(prefix="r", dir="/tmp")  # Ray puts Unix sockets deep into it
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port=0", f"--temp-dir={directory}"]
    command += [f"--num-cpus={_CPUS}", "--include-dashboard=false", f"--object-store-memory={80 << 20}"]
    log = Path(directory, "start.log")
    with open(log, "wb") as output:
        starting = subprocess.Popen(
            command, env=environment(**_SETTINGS), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        assert starting.wait(_LONGEST) == 0, log.read_text()
        yield Path(directory, "ray_current_cluster").read_text()
    finally:
        _end(starting.pid)
        starting.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _end(group: int) -> None:
    """All that Ray has started is in the process group of the command that started it."""
    wait_until(lambda: not _signal(group), _LONGEST, "the end of Ray")


def _signal(group: int) -> bool:
    """Kill what lives of a group; whether there was something."""
    try:
        os.killpg(group, signal.SIGKILL)
        os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG)
    except (ProcessLookupError, ChildProcessError):
        return False
    return True


def need_ray() -> None:
    """Skip where Ray is not installed, which is a failure if CI=true."""
    if importlib.util.find_spec("ray") is None:
        reason = "needs ray: make test EXTRAS=test,ray"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
