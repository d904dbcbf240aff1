from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.bench import report
from kvstore.bench.compare import OURS, Comparison, Series
from kvstore.bench.jobs import Measured
from kvstore.bench.options import Options
from kvstore.bench.plot import plot
from kvstore.bench.sweep import Sweep
from kvstore.bench.workloads import one_array, workload

OPTIONS = Options(workload="big64", workers=2, peer="mxnet", limit=True, repeat=2, rounds=2)


def measured(*seconds: float) -> Measured:
    return Measured(list(seconds), {"worker": 1.0, "server": 2.0}, {"worker": 150_000_000, "server": 90_000_000})


def comparison() -> Comparison:
    ours = Series(2_000_000_000, 50_000_000, [measured(0.1, 0.2), measured(0.1, 0.3)])
    peer = Series(2_000_000_000, 50_000_000, [measured(0.3, 0.3), measured(0.6, 0.6)])
    return Comparison(workload("big64"), OPTIONS, {OURS: ours, "mxnet": peer}, [[0.05, 0.05], [0.05, 0.05]])


def test_the_table_of_a_comparison() -> None:
    assert report.comparison(comparison()).splitlines() == [
        "big64, 1 key, 67.1 MB a worker, 2 workers, 1 server, dist_sync, none",
        "        median ms  lowest  highest  worker CPU s/GB  server CPU s/GB  worker MB  server MB",
        "pslite      150.0   100.0    300.0              0.5                1        100         40",
        "mxnet       450.0   300.0    600.0              0.5                1        100         40",
        "mxnet / pslite: 3.00 (2.00 to 3.00 in 2 pairs of jobs)",
        "pslite / limit: 3.00 (3.00 to 4.00 in 2 pairs of jobs); the limit is 50.0 ms",
    ]


def test_settings_that_are_not_the_default_are_named() -> None:
    options = replace(OPTIONS, transport="tcp", arrays="empty", calls="each", busy_worker=True)
    head = report.comparison(replace(comparison(), options=options)).splitlines()[0]
    assert head.endswith(", none, transport tcp without encryption, kv.empty, call by call, busy workers")


def test_the_json_of_a_comparison() -> None:
    document = json.loads(json.dumps(report.document(comparisons=[comparison().as_dict()])))
    assert document["format"] == 1
    assert document["machine"].keys() == {"cpus", "platform", "python", "numpy", "pslite"}
    [found] = document["comparisons"]
    assert (found["workload"], found["keys"], found["bytes"], found["workers"]) == ("big64", 1, 1 << 26, 2)
    assert found["series"]["pslite"] == {
        "rounds_s": [[0.1, 0.2], [0.1, 0.3]],
        "median_s": pytest.approx(0.15),
        "cpu_s_per_gb": {"worker": 0.5, "server": 1.0},
        "memory_bytes": {"worker": 100_000_000, "server": 40_000_000},
    }
    assert found["ratio"] == pytest.approx({"median": 3, "lowest": 2, "highest": 3})
    assert found["limit"]["median"] == pytest.approx(3)


def test_without_peer_and_limit_there_is_no_ratio() -> None:
    ours = Series(1, 0, [measured(0.1)])
    found = Comparison(workload("big64"), Options(workload="big64"), {OURS: ours}, [])
    assert (found.as_dict()["ratio"], found.as_dict()["limit"]) == (None, None)
    assert len(report.comparison(found).splitlines()) == 3


def sweep(*seconds: float) -> Sweep:
    options = Options(repeat=1)
    return Sweep(
        "sizes",
        [
            (size, Comparison(one_array(size), options, {OURS: Series(1, 0, [measured(time)])}, []))
            for size, time in zip((1 << 20, 1 << 22, 1 << 24), seconds, strict=True)
        ],
    )


def test_the_table_of_a_sweep_names_the_worst_step() -> None:
    assert report.sweep(sweep(0.001, 0.004, 0.016)).splitlines() == [
        "bytes of one key  pslite ms",
        "1,048,576             1.000",
        "4,194,304             4.000",
        "16,777,216             16.0",
        "pslite: worst step 1.00 x the trend, from 1,048,576 to 4,194,304; within 1.5",
    ]
    assert "to 16,777,216; above 1.5" in report.sweep(sweep(0.001, 0.004, 0.064))


def test_the_json_of_a_sweep() -> None:
    found = json.loads(json.dumps(sweep(0.001, 0.004, 0.016).as_dict()))
    assert [point["x"] for point in found["points"]] == [1 << 20, 1 << 22, 1 << 24]
    assert found["worst_steps"]["pslite"].keys() == {"factor", "start", "end"}


def test_the_table_of_pairs() -> None:
    times = {"answers only": {"push": [0.2], "pull": [0.1]}, "new": {"push": [1.5], "pull": [0.001]}}
    assert report.pairs(times).splitlines() == [
        "10 M pairs    push ms  pull ms",
        "answers only    200.0    100.0",
        "new           1,500.0    1.000",
    ]


@pytest.mark.processes
def test_a_plot_is_a_png(tmp_path: Path) -> None:
    """In a process of its own, for matplotlib leaves its fonts open."""
    code = f"from {__name__} import draw; draw('a.png')"
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def draw(path: str) -> None:
    plot([sweep(0.001, 0.004, 0.016), replace(sweep(1, 2, 3), over="workers")], path)
