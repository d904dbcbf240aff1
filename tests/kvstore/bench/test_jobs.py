"""Real jobs, as small as they get."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.bench import pairs
from kvstore.bench.__main__ import main
from kvstore.bench.compare import compare
from kvstore.bench.options import Options
from kvstore.bench.processes import JobFailed, execute
from kvstore.bench.workloads import Workload
from tests.harness import wait_until

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.processes


def test_the_smallest_run(capsys: pytest.CaptureFixture[str]) -> None:
    line = "--workload one16 --rounds 2 -n 1 -s 1 --repeat 1 --limit --json"
    assert main(line.split()) == 0
    [found] = json.loads(capsys.readouterr().out)["comparisons"]
    ours = found["series"]["pslite"]
    assert [len(rounds) for rounds in ours["rounds_s"]] == [2]
    assert ours["cpu_s_per_gb"].keys() == ours["memory_bytes"].keys() == {"scheduler", "server", "worker"}
    assert min(ours["cpu_s_per_gb"].values()) > 0


@pytest.mark.parametrize("kind", ["dist_sync", "dist_async"])
@pytest.mark.parametrize("server", ["none", "adam"])
def test_values_are_checked(kind: str, server: str) -> None:
    load = Workload("two", ((3, 5), (4099,)))
    options = Options(workers=2, servers=2, type=kind, server=server, rounds=2, repeat=1, calls="each")
    assert len(compare(load, options).series["pslite"].jobs) == 1


def test_rows_are_checked() -> None:
    load = Workload("rows", ((100, 3),), rows=10)
    assert compare(load, Options(workers=2, server="sgd", rounds=2, repeat=1)).workload is load


def test_pairs_of_keys_and_values() -> None:
    times = pairs.measure(rounds=2, transport=None, pairs=1000)
    assert list(times) == ["answers only", "default handle, new keys", "default handle, known keys"]
    assert all(len(times[name][what]) == 2 for name in times for what in ("push", "pull"))


def test_a_process_that_fails_ends_the_others(tmp_path: Path) -> None:
    waits = [sys.executable, "-c", "import time; time.sleep(60)"]
    fails = [sys.executable, "-c", "import sys; sys.exit('out of paper')"]
    with pytest.raises(JobFailed, match="worker ended with exit code 1:\n  out of paper"):
        execute([("server", waits), ("worker", fails)], tmp_path)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_leaves_no_process(signum: int, status: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kvstore.bench", "--workload", "one16", "--rounds", "1000000"]
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: list(tmp_path.glob("pslite-bench-*/output-0")), 30, "the start of a job")
        process.send_signal(signum)
        assert process.wait(30) == status
    assert list(tmp_path.iterdir()) == []


def test_the_command_hands_on_to_the_benchmark(tmp_path: Path) -> None:
    code = "import sys; from launcher.commands import main; sys.exit(main())"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "bench", "--workload", "alexnet"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pslite bench: error: --workload='alexnet' is not allowed")


def test_it_runs_from_a_source_checkout(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "tools" / "bench.py"),
        *["--workload", "one16", "--rounds", "1", "--repeat", "1"],
    ]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("one16, 1 key, 64 B a worker, 1 worker, 1 server, dist_sync, none\n")
