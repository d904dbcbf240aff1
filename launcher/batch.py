"""Scripts for batch systems. Their body is the launch line, which the batch system runs inside an allocation. Pure."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from .boot import package_root
from .options import Options

#: Isolated (-I), as the agents are: no file in the working directory must shadow ours.
_LAUNCH = "import sys; sys.path.insert(0, sys.argv.pop(1)); from launcher.cli import main; sys.exit(main())"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def script(options: Options, environ: Mapping[str, str], arguments: Sequence[str]) -> str | None:
    """What to print instead of starting a job; None if it is to be started.

    ``arguments``: the launcher's own, from which ``options`` were parsed.
    """
    if options.sbatch:
        directives = _sbatch(options)
    elif options.launcher == "sge" and "PE_HOSTFILE" not in environ:
        directives = _qsub(options)
    else:
        return None
    words = [sys.executable, "-I", "-c", _LAUNCH, str(package_root()), *_inner(options, arguments)]
    return "\n".join(["#!/bin/bash", *directives, "", "exec " + " ".join(map(_quoted, words)), ""])


def _sbatch(options: Options) -> list[str]:
    name, tasks = _job_name(options), options.num_workers
    lines = [f"--job-name={name}", f"--nodes=1-{tasks}", f"--ntasks={tasks}", f"--output={name}-%j.log"]
    return [f"#SBATCH {line}" for line in lines]


def _qsub(options: Options) -> list[str]:
    name = _job_name(options)
    lines = ["-S /bin/bash", f"-N {name}", f"-pe mpi {options.num_workers}", "-cwd", "-V", "-j y", f"-o {name}.log"]
    return [f"#$ {line}" for line in lines]


def _job_name(options: Options) -> str:
    """After the script that is to run."""
    scripts = [word for word in options.command if word.endswith(".py")] or list(options.command)
    return "pslite-" + (_UNSAFE.sub("_", PurePath(scripts[0]).stem) or "job")


def _inner(options: Options, arguments: Sequence[str]) -> list[str]:
    """The arguments without ``--sbatch``, which may be among those of the command, too."""
    own = len(arguments) - len(options.command)
    return [word for word in arguments[:own] if word != "--sbatch"] + list(arguments[own:])


def _quoted(word: str) -> str:
    """For bash. On one line, for qsub takes any line that begins with ``#$`` for its own."""
    if "\n" not in word:
        return shlex.quote(word)
    return "$'" + word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
