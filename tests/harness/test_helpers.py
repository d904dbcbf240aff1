from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.harness import FakeClock, is_running, wait_until


def test_fake_clock_stands_still(fake_clock: FakeClock) -> None:
    now = fake_clock()
    assert fake_clock() == now
    assert fake_clock.advance(2.5) == fake_clock() == now + 2.5


def test_wait_until_sees_another_thread() -> None:
    seen: list[int] = []
    thread = threading.Timer(0.02, seen.append, [1])
    thread.start()
    wait_until(lambda: seen)
    thread.join()


def test_wait_until_says_what_did_not_happen() -> None:
    with pytest.raises(AssertionError, match="the answer did not become true within 0 s"):
        wait_until(lambda: False, timeout=0, what="the answer")


def test_weird_tmp_path_is_a_directory(weird_tmp_path: Path) -> None:
    assert weird_tmp_path.is_dir()
    assert "$(echo foo)" in weird_tmp_path.name


@pytest.mark.processes
def test_a_zombie_is_not_running() -> None:
    assert is_running(os.getpid())
    with subprocess.Popen(["true"]) as child:
        wait_until(lambda: not is_running(child.pid))
    assert not is_running(child.pid)
