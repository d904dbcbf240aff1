"""The examples run as their first lines say."""

from __future__ import annotations

import re
import subprocess
import sys
from types import ModuleType

import pytest

from .jobs import EXAMPLES, environment, launch

pytestmark = pytest.mark.processes


def run(script: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout)


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_demo() -> None:
    done = run("demo.py", timeout=140)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["local", "dist_sync", "dist_async", "largest"]


def test_hello_alone() -> None:
    assert run("hello.py").stdout == "worker 0 of 1 pulls [1. 1. 1.]\n"


def test_hello_in_step() -> None:
    done = launch("-n", 3, "-s", 2, sys.executable, EXAMPLES / "hello.py", "dist_sync")
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"worker \d of 3 pulls .*", done.stdout)) == [
        f"worker {rank} of 3 pulls [6. 6. 6.]" for rank in range(3)
    ]


def test_hello_at_its_own_pace() -> None:
    done = launch("-n", 3, "-s", 1, sys.executable, EXAMPLES / "hello.py", "dist_async")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"worker \d of 3 pulls \[([123])\. \1\. \1\.\]", done.stdout)) == 3


def test_async_counter() -> None:
    done = launch("-n", 3, "-s", 2, sys.executable, EXAMPLES / "async_counter.py")
    assert done.returncode == 0, done.stderr
    assert "3 workers counted to 600\n" in done.stdout


def test_async_counter_alone_shows_how_to_start_it() -> None:
    done = run("async_counter.py")
    assert done.returncode == 1
    assert "pslite-launch -n 2 -s 1 python" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "dist_sync"])
def test_dataloader(kind: str, torch: ModuleType) -> None:
    """A DataLoader that forks after create()."""
    script = EXAMPLES / "dataloader.py"
    done = run("dataloader.py") if kind == "local" else launch("-n", 2, "-s", 1, sys.executable, script, kind)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"epoch \d loss ([\d.]+)", done.stdout)]
    assert len(losses) == 3 and losses == sorted(losses, reverse=True)
