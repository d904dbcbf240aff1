"""The same under the launcher: its exit status, and a report that names the process which began it."""

from __future__ import annotations

import re
import sys
import time

import pytest

from .jobs import GRACE, SCRIPTS, launch, report, took

pytestmark = pytest.mark.processes

STATUS = {"killed": 137, "stopped": 1, "raise": 1, "finish": 1}


@pytest.mark.parametrize("where, how", [
    ("push", "killed"),
    ("barrier", "stopped"),
    ("exit", "raise"),
    ("push", "finish"),
])  # fmt: skip
def test_a_worker_falls_out(where: str, how: str) -> None:
    done = launch("-n", 3, "-s", 1, sys.executable, SCRIPTS / "misfit.py", where, how)
    [event] = re.findall(r"event ([\d.]+)", done.stdout)
    seconds = took(float(event), "from the event to the end of the launcher")
    assert done.returncode == STATUS[how], done.stderr
    assert "worker 1" in report(done).splitlines()[0], report(done)
    # The others have ended in time; then the launcher gives the cause of it a second to end by itself, and stops it.
    assert seconds < GRACE + (how == "stopped"), report(done)


@pytest.mark.parametrize("how, status, words", [
    ("waits", 1, r"missing .*worker 1 \(pid \d+ runs, but has not called create\(\)\)"),
    ("stopped", 1, r"missing .*worker 1 \(pid \d+ runs, but has not called create\(\)\)"),
    ("killed", 137, r"pslite: worker 1 on localhost \(pid \d+\) died: signal 9 \(SIGKILL\)"),
    ("raises", 1, r"pslite: worker 1 on localhost \(pid \d+\) failed: exit code 1"),
])  # fmt: skip
def test_a_worker_that_does_not_create(how: str, status: int, words: str) -> None:
    script = SCRIPTS / "before_create.py"
    done = launch("-n", 3, "-s", 1, "--start-timeout", 2, sys.executable, script, how)
    assert re.search(words, done.stderr), done.stderr
    assert done.returncode == status, done.stderr


def test_a_worker_that_exits_with_0_before_create_does_not_cost_the_start_timeout() -> None:
    begin = time.monotonic()
    done = launch("-n", 3, "-s", 1, sys.executable, SCRIPTS / "before_create.py", "exits")
    assert re.search(r"missing .*worker 1 \(pid \d+ ended with status 0 before it joined\)", done.stderr), done.stderr
    assert done.returncode == 1
    assert time.monotonic() - begin < 20, "the start timeout is 60 s"
