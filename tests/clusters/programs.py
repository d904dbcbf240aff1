"""What the processes of jobs run here, and what they are to print."""

from __future__ import annotations

import functools
import json
import re
import sys

from tests.launcher.launching import ROOT, launch

TRAIN = (sys.executable, str(ROOT / "examples" / "train_images.py"), "--kv-store", "dist_sync", "--epochs", "1")
JOB = ("-n", "4", "-s", "2")  # that trains

#: Words that whatever joins or splits a command takes apart.
HOSTILE = ("a  b", "", "'", '"', "$(echo x)", "`y`", "\\", "-n", "--", "\n#$ -q x\n#SBATCH -N9", "*", "ü;&|>", "a\xa0")

#: Each worker prints its rank, host and arguments.
_SHOW = "import json, os, socket, sys; print(json.dumps([os.environ['RANK'], socket.gethostname(), sys.argv[1:]]))"
SHOW = (sys.executable, "-c", f"import os\nif os.environ['DMLC_ROLE'] == 'worker':\n    {_SHOW}")

#: The last worker fails, the others wait for what never comes.
_FAIL = "sys.exit(7) if os.environ.get('RANK') == '3' else time.sleep(60)"
FAIL = (sys.executable, "-c", f"import os, sys, time\n{_FAIL}")


def shown(output: str) -> dict[str, tuple[str, list[str]]]:
    """Host and arguments by rank, from the output of a job that ran ``SHOW``."""
    lines = [json.loads(line) for line in re.findall(r"^\[worker \d\] +(\[.*)", output, re.MULTILINE)]
    return {rank: (host, arguments) for rank, host, arguments in lines}


def results(output: str) -> list[str]:
    """The losses and the accuracy that a job has printed which ran ``TRAIN``."""
    return re.findall(r"(?:loss|accuracy)[ =][\d.]+", output)


@functools.cache
def local_results() -> list[str]:
    """Those of a local job."""
    done = launch(*JOB, *TRAIN)
    assert done.returncode == 0, done.stderr
    found = results(done.stdout)
    assert len(found) == 2, done.stdout
    return found
