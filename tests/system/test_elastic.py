"""Workers join a running job: started by ``pslite scale``, and by hand."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.launcher.launching import launched

from .jobs import LONGEST, ROOT, SCRIPTS, environment

pytestmark = pytest.mark.processes

SCALE = "import sys; from launcher.commands import main; sys.exit(main(['scale', *sys.argv[1:]]))"


def scale(tmp: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``pslite scale``, for the only job that has its directory in ``tmp``."""
    return subprocess.run(
        [sys.executable, "-c", SCALE, *arguments],
        env=environment(TMPDIR=str(tmp)), cwd=ROOT, capture_output=True, text=True, timeout=LONGEST,
    )  # fmt: skip


@pytest.fixture
def short_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ps") as name:
        yield Path(name)


def test_workers_come_while_the_job_runs(short_directory: Path) -> None:
    tmp, script = short_directory, [sys.executable, str(SCRIPTS / "elastic.py"), "4"]
    with launched("--elastic", "2:4", "-s", "2", *script, TMPDIR=str(tmp)) as job:
        wait_until(lambda: list(tmp.glob("pslite-*/control.sock")), LONGEST, "the launcher's socket")
        [directory] = tmp.glob("pslite-*")
        assert "--elastic 2:4 allows no such number" in scale(tmp, "--workers", "5").stderr
        done = scale(tmp, "--workers", "3")
        assert (done.returncode, done.stdout) == (0, "3 workers: starting worker 2\n"), done.stderr
        place = {"DMLC_ROLE": "worker", "PSLITE_ROOT": f"ipc://{directory}/scheduler.sock", "PYTHONPATH": str(ROOT)}
        by_hand = subprocess.run(
            script, env=environment(**place), capture_output=True, text=True, timeout=LONGEST, check=False
        )
        out, err = job.communicate(timeout=LONGEST)
    assert (job.returncode, by_hand.returncode) == (0, 0), by_hand.stderr + err
    lines = re.findall(r"rank (\d) began with \d+, ranks \[0, 1, 2, 3\]: (\d+) in (\d+)", out + by_hand.stdout)
    assert sorted(int(rank) for rank, *_ in lines) == [0, 1, 2, 3], out + err
    assert len({(value, last) for _, value, last in lines}) == 1
    assert "no jobs of this user here can be scaled" in scale(tmp, "--workers", "3").stderr


TOO_LATE = """
import json, os, time
def table(role):
    return [p for p in json.load(open(os.environ["PSLITE_JOB_DIR"] + "/processes.json")) if p["role"] == role]
def wait_for(condition):
    while os.environ["DMLC_ROLE"] == "worker" and not condition():
        time.sleep(0.02)
late = os.environ.get("DMLC_WORKER_ID") == "1"
wait_for((lambda: table("scheduler")[0]["exit"] == 0) if late else (lambda: len(table("worker")) == 2))
import kvstore
kvstore.create("dist_sync").close()
"""


def test_who_comes_when_the_job_has_ended_does_not_make_it_fail(short_directory: Path) -> None:
    tmp = short_directory
    with launched("--elastic", "1:2", "-s", "1", sys.executable, "-c", TOO_LATE, TMPDIR=str(tmp)) as job:
        wait_until(lambda: list(tmp.glob("pslite-*/control.sock")), LONGEST, "the launcher's socket")
        assert scale(tmp, "--workers", "2").returncode == 0
        _, err = job.communicate(timeout=LONGEST)
    assert job.returncode == 0, err
    assert "did not join: JoinError: this process cannot join: the job has ended" in err
