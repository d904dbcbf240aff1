"""The lines that start processes of a job by hand, as the scheduler and the launcher print them. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from .spec import JobSpec

#: What the others must have in their environment as the scheduler has it.
_THE_SAME_FOR_ALL = ("PSLITE_SECURITY", "PSLITE_REPLICAS", "PSLITE_MAX_RESTARTS", "PSLITE_JOB_ID")


def first_lines(
    root: str, workers: int, servers: int, keys: str | None, command: Sequence[str], env: Mapping[str, str]
) -> str:
    """What to type for all servers and workers. ``env`` is the scheduler's, ``keys`` where the keys of the job are."""
    lines = [f"pslite: the scheduler listens on {root}; start the others by"]
    for role, count in (("server", servers), ("worker", workers)):
        more = ["-n", str(workers), "-s", str(servers)]
        more += ["--key", keys, "--rank", "0"] if keys is not None else []
        lines.append(f"  {_line(role, root, more, command, env)}{_how_often(count, keys)}")
    return "\n".join(lines) + "\n"


def one_more(spec: JobSpec, root: str, directory: str) -> str | None:
    """What to type for a worker more; None if none can come by TCP. ``directory`` is the job's on the first host."""
    rank = sum(process.role == "worker" for process in spec.processes)
    if spec.elastic is None or spec.transport != "tcp" or rank >= spec.elastic.most:
        return None
    worker = spec.elastic.worker(rank)
    if not spec.keys:
        return _line("worker", root, [], worker.argv, {**worker.env, "PSLITE_SECURITY": "none"})
    return _line("worker", root, ["--rank", str(rank), "--key", f"{directory}/keys"], worker.argv, worker.env)


def _line(role: str, root: str, more: Sequence[str], command: Sequence[str], env: Mapping[str, str]) -> str:
    settings = [f"{name}={shlex.quote(env[name])}" for name in _THE_SAME_FOR_ALL if env.get(name)]
    words = ["pslite", "run", "--role", role, "--root", root, *more, "--", *command]
    return " ".join([*settings, shlex.join(words)])


def _how_often(count: int, keys: str | None) -> str:
    if count == 1:
        return ""
    return f"  # {count} times" if keys is None else f"  # and --rank 1{f' to {count - 1}' if count > 2 else ''}"
