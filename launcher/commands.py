"""``pslite``: one command with subcommands."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial

from . import boot, by_hand, cli, keys, scale


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pslite`` with these arguments (default: the process's). Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0 if words else 2
    if words[0] not in _COMMANDS:
        sys.stderr.write(f"pslite: error: unknown command {words[0]!r}; known are {', '.join(_COMMANDS)}\n")
        return 2
    return _COMMANDS[words[0]][0](words[1:])


def _launch(arguments: Sequence[str]) -> int:
    return cli.main(arguments, prog="pslite launch")


def _become(module: str, arguments: Sequence[str]) -> int:
    """Become ``python -m MODULE``: the launcher imports nothing of the packages that it starts."""
    path = os.pathsep.join(filter(None, (boot.import_root(), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", module, *arguments]
    os.execve(sys.executable, command, os.environ | ({"PYTHONPATH": path} if path else {}))


def _keys(arguments: Sequence[str]) -> int:
    """Become ``python -m pslite.keys``, likewise."""
    argv, env = keys.command(*arguments)
    os.execve(sys.executable, argv, env)


def _env(arguments: Sequence[str]) -> int:
    if arguments:
        sys.stderr.write("pslite env: error: it takes no arguments\n")
        return 2
    versions = {name: _version(name) for name in ("numpy", "pyzmq", "msgpack", "pslite")}
    versions["libzmq"] = _libzmq_version()
    versions["python"] = f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    versions["platform"] = platform.platform()
    for name in ("pslite", "python", "numpy", "pyzmq", "libzmq", "msgpack", "platform"):
        sys.stdout.write(f"{name + ':':<10}{versions[name]}\n")
    return 0


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        source = f" (running from {boot.package_root()})" if distribution == "pslite" else ""
        return f"not installed{source}"


def _libzmq_version() -> str:
    try:
        return str(importlib.import_module("zmq").zmq_version())
    except ImportError as error:
        return f"not importable: {error}"


def _help() -> str:
    commands = "".join(f"  {name:<8} {text}\n" for name, (_, text) in _COMMANDS.items())
    return f"usage: pslite COMMAND [ARG ...]\n\ncommands:\n{commands}"


_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "launch": (_launch, "start a scheduler, servers and workers (the same as pslite-launch)"),
    "run": (by_hand.main, "start one process of a job by hand, on any host"),
    "scale": (scale.main, "change how many workers or servers a running job has"),
    "bench": (
        partial(_become, "kvstore.bench"),
        "measure rounds of push and pull, also against peers and against what memory allows",
    ),
    "chaos": (partial(_become, "kvstore.chaos"), "kill and stop processes of jobs, and count what got lost"),
    "keys": (_keys, "make the keys of a job whose processes are started by hand"),
    "env": (_env, "print the versions that a bug report needs"),
}
