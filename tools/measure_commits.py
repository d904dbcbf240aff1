#!/usr/bin/env python3
"""What a round of push and pull costs in this tree against an earlier commit, in CPU seconds of all processes.

    python tools/measure_commits.py 8c9059e --pairs 30
    python tools/measure_commits.py 8c9059e --pairs 30 -- --max-restarts 3

Jobs of both run in turn, so that a busy moment of the machine meets both alike. What follows ``--`` are words for the
launcher, of this tree's jobs only. Prints the median ratio of the pairs with its 95 % interval, by order statistics.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kvstore.bench.jobs import read
from kvstore.bench.peers.run import Job
from kvstore.bench.processes import execute
from kvstore.bench.workloads import workload

HERE = Path(__file__).resolve().parent.parent
ENV = ("--env", "OMP_NUM_THREADS=1")


def cpu_seconds(tree: Path, options: argparse.Namespace, words: Sequence[str]) -> float:
    """Of one job of this tree, in all its processes, per round."""
    with tempfile.TemporaryDirectory(prefix="pslite-commits-") as directory:
        shapes = [list(shape) for shape in workload(options.workload).shapes]
        job = Job(shapes, 0, 1, False, options.server, "dist_sync", "plain", False, options.rounds, options.workers,
                  False, directory)  # fmt: skip
        path = Path(directory, "job.json")
        path.write_text(json.dumps(asdict(job)))
        place = ["env", "-C", str(tree), f"PYTHONPATH={tree}", sys.executable]
        launch = [*place, "-m", "launcher", "-n", str(options.workers), "-s", str(options.servers), "--no-prefix"]
        execute([("launcher", [*launch, *words, *ENV, *place[-1:], "-m", "kvstore.bench.ours", str(path)])],
                Path(directory))  # fmt: skip
        return sum(read(Path(directory), options.workers).cpu.values()) / options.rounds


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Of the median, 95 %: between two of the ratios in their order (the normal approximation of the binomial)."""
    below = max(0, math.floor(len(ratios) / 2 - 0.98 * math.sqrt(len(ratios))))
    ordered = sorted(ratios)
    return ordered[below], ordered[-1 - below]


def options_of(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="the earlier commit")
    parser.add_argument("--pairs", type=int, default=10, help="jobs of each (default: 10)")
    parser.add_argument("--rounds", type=int, default=16, help="rounds of a job (default: 16)")
    parser.add_argument("--workload", default="resnet50", help="as of pslite bench (default: resnet50)")
    parser.add_argument("--server", default="none", help="as of pslite bench (default: none)")
    parser.add_argument("-n", "--workers", type=int, default=2)
    parser.add_argument("-s", "--servers", type=int, default=1)
    return parser.parse_args(words)


def main() -> int:
    arguments = sys.argv[1:]
    words = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    options = options_of(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    with tempfile.TemporaryDirectory(prefix="pslite-commit-") as directory:
        before = Path(directory, "tree")
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(before), options.commit], check=True)
        try:
            pairs = []
            for number in range(options.pairs):
                pairs.append((cpu_seconds(before, options, ()), cpu_seconds(HERE, options, words)))
                print(f"pair {number}: {pairs[-1][0]:.4f} s before, {pairs[-1][1]:.4f} s now", file=sys.stderr)
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    ratios = [now / then for then, now in pairs]
    low, high = interval(ratios)
    print(f"CPU seconds a round: {statistics.median(then for then, _ in pairs):.4f} before, "
          f"{statistics.median(now for _, now in pairs):.4f} now; ratio {statistics.median(ratios):.3f}, "
          f"95 % interval {low:.3f} to {high:.3f}, {len(pairs)} pairs")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
