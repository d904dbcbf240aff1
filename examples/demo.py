"""Train on images in one process, in step and asynchronously, and compare; status 0 if all goals are met.

python examples/demo.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SCRIPT = str(Path(__file__).with_name("train_images.py"))
CLUSTER = ["-m", "launcher", "-n", "4", "-s", "2", sys.executable]
FLOOR = {"digits": 0.95, "mnist": 0.90}  # least accuracy of every type
MARGIN = {"local": 0.0, "dist_sync": 0.01, "dist_async": 0.02}  # accuracy a type may lose against one process
EXACT = ["--dtype", "float64", "--steps", "50"]  # the runs whose weights are compared
BOUND = 1e-9  # largest difference of the weights, relative to the largest weight
SUMMARY = "{type} workers={workers} servers={servers} seconds={seconds:.2f} accuracy={accuracy:.4f}"


class ChildFailed(Exception):
    """A training run ended with another status than 0; its output is in the message."""


def run(command: Sequence[str], verbose: bool) -> None:
    """Run a command to its end; its output is shown with verbose, or in the ChildFailed that a failure raises."""
    if verbose:
        print("$", *command, flush=True)
    output = None if verbose else subprocess.PIPE
    done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise ChildFailed(f"{done.stdout or ''}\n{' '.join(command)}\nended with status {done.returncode}")


def train(kind: str, options: Sequence[str], verbose: bool) -> None:
    """Run train_images.py: 'local' in one process, any other type with 4 workers and 2 servers."""
    cluster = [] if kind == "local" else CLUSTER
    run([sys.executable, *cluster, SCRIPT, "--kv-store", kind, *options], verbose)


def difference(one: Path, other: Path) -> float:
    """Return max |difference| / max |weight| between two files of weights."""
    with np.load(one) as a, np.load(other) as b:
        largest = max(float(np.abs(a[name]).max()) for name in a.files)
        return max(float(np.abs(a[name] - b[name]).max()) for name in a.files) / largest


def missed(data: str, accuracy: dict[str, float], apart: float) -> list[str]:
    """Return one line for each goal that was not met."""
    lines = []
    for kind, value in accuracy.items():
        goal = max(FLOOR[data], accuracy["local"] - MARGIN[kind])
        if not value >= goal - 1e-12:
            lines.append(f"{kind}: accuracy {value:.4f} is below {goal:.4f}")
    if not apart <= BOUND:
        lines.append(f"weights differ by {apart:.1e}, more than {BOUND:.0e}")
    return lines


def compare(folder: Path, data: str, verbose: bool) -> list[str]:
    """Train with every type, print a line for each, and return the goals that were missed."""
    accuracy: dict[str, float] = {}
    for kind in MARGIN:
        report = folder / f"{kind}.json"
        train(kind, ["--data", data, "--json", str(report)], verbose)
        result: dict[str, Any] = json.loads(report.read_text())
        print(SUMMARY.format(**result), flush=True)
        accuracy[kind] = result["accuracy"]
    one, cluster = folder / "local.npz", folder / "dist_sync.npz"
    for kind, weights in (("local", one), ("dist_sync", cluster)):
        train(kind, ["--data", data, *EXACT, "--save-weights", str(weights)], verbose)
    apart = difference(one, cluster)
    print(f"largest difference between the weights of dist_sync and of one process: {apart:.1e} (float64, 50 steps)")
    return missed(data, accuracy, apart)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=tuple(FLOOR), help="default digits")
    parser.add_argument("--verbose", action="store_true", help="show the output of every run")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        try:
            failures = compare(Path(folder), args.data, args.verbose)
        except ChildFailed as error:
            failures = [str(error)]
    for line in failures:
        print("FAILED", line, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
