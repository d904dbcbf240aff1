"""``pslite run``: give one process its place in a job that is started by hand, and become its command."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from . import addresses
from .boot import import_root
from .errors import UsageError
from .joining import first_lines
from .keys import key_file

_ROLES = ("scheduler", "server", "worker")
_BACKLOG = 512

#: What this sets. Inherited values may be those of another job: they are removed first. All others go through.
SETS = frozenset(
    (
        *("DMLC_ROLE", "DMLC_PS_ROOT_URI", "DMLC_PS_ROOT_PORT", "PSLITE_ROOT", "PSLITE_ROOT_FD", "PSLITE_KEY_FILE"),
        *("DMLC_RANK", "DMLC_TASK_ID", "DMLC_WORKER_ID", "DMLC_SERVER_ID", "RANK", "WORLD_SIZE", "PSLITE_AGENT_FD"),
    )
)

_USAGE = "%(prog)s --role ROLE [options] [--] COMMAND [ARG ...]"
_DESCRIPTION = """\
Give one process its place in a job, by its environment, and become COMMAND.
The scheduler comes first: it prints the lines that start the others, on any
host. Each needs its key there, and roster.json beside it (see pslite keys).
"""
_EXAMPLES = """\
examples:
  {prog} --role scheduler --interface eth0 --key keys -n 4 -s 2 -- \\
      python train.py
  {prog} --role server --root tcp://10.0.0.5:41233 --key keys --rank 0 -- \\
      python train.py
  {prog} --role worker --root tcp://10.0.0.5:41233 --key job -- \\
      python train.py
"""


def main(argv: Sequence[str] | None = None, prog: str = "pslite run") -> int:
    """Become the command that these arguments (default: the process's) name. Returns an exit status if that fails.

    Raises SystemExit on ``--help`` (0) and on mistakes in the command line (2).
    """
    args = _parser(prog).parse_args(sys.argv[1:] if argv is None else argv)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    try:
        if not command:
            raise UsageError("the command to run is missing")
        env = _scheduler(args, command) if args.role == "scheduler" else _member(args)
    except UsageError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 2
    sys.stderr.flush()
    try:
        os.execvpe(command[0], command, env)
    except OSError as error:
        sys.stderr.write(f"{prog}: error: {command[0]}: {error.strerror}\n")
        return 127 if isinstance(error, FileNotFoundError) else 126


def _scheduler(args: argparse.Namespace, command: Sequence[str]) -> dict[str, str]:
    """The environment of the scheduler, whose socket listens already; say how to start the others."""
    if args.workers is None or args.servers is None:
        raise UsageError("the scheduler must know how many it waits for: give -n and -s")
    host, wanted = _root(args.root, "tcp://HOST or tcp://HOST:PORT, where it is to listen") if args.root else ("", 0)
    try:
        host = addresses.choose(host or os.environ.get("DMLC_NODE_HOST") or None, args.interface, ())
        key = _key(args, host, 0)
        listener, port = addresses.listen(host, _BACKLOG, wanted)
    except addresses.NoAddress as error:
        raise UsageError(str(error)) from None
    listener.setblocking(False)  # accept() must not block when a peer has left the queue again
    os.set_inheritable(listener.fileno(), True)
    if not wanted:
        root = f"tcp://{_bracketed(_reached_at(host))}:{port}"
        keys = str(Path(args.key).parent) if args.key and not Path(args.key).is_dir() else args.key or None
        sys.stderr.write(first_lines(root, args.workers, args.servers, keys, command, os.environ))
    return _environment(args, host, port, None, key) | {"PSLITE_ROOT_FD": str(listener.detach())}


def _member(args: argparse.Namespace) -> dict[str, str]:
    """The environment of a server or worker."""
    form = "tcp://HOST:PORT, the address that the scheduler has printed"
    if not args.root:
        raise UsageError(f"a {args.role} must know where the scheduler is: give --root {form}")
    host, port = _root(args.root, form)
    if not host or not port:
        raise UsageError(f"--root {args.root}: give {form}")
    key = _key(args, host, args.rank)
    if args.rank is None and key is not None and (named := re.fullmatch(rf"{args.role}-(\d+)\.key", Path(key).name)):
        args.rank = int(named[1])
    return _environment(args, host, port, args.rank, key)


def _environment(
    args: argparse.Namespace, host: str, port: int, rank: int | None, key: str | None
) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in SETS}
    env |= {"DMLC_ROLE": args.role, "PSLITE_ROOT": f"tcp://{_bracketed(host)}:{port}"}
    env |= {"DMLC_PS_ROOT_URI": host, "DMLC_PS_ROOT_PORT": str(port)}
    env.setdefault("DMLC_JOB_CLUSTER", "hand")
    counts = {"DMLC_NUM_WORKER": args.workers, "DMLC_NUM_SERVER": args.servers}
    env |= {name: str(count) for name, count in counts.items() if count is not None}
    if rank is not None:
        env[f"DMLC_{args.role.upper()}_ID"] = str(rank)
    if args.role == "worker":
        place = {"RANK": rank, "WORLD_SIZE": args.workers}
        env |= {name: str(number) for name, number in place.items() if number is not None}
    if key is not None:
        env["PSLITE_KEY_FILE"] = key
    if args.interface:
        env["DMLC_INTERFACE"] = args.interface
    if path := os.pathsep.join(filter(None, (import_root(), env.get("PYTHONPATH")))):
        env["PYTHONPATH"] = path
    return env


# Addresses


def _root(text: str, form: str) -> tuple[str, int]:
    """Host ("" if none is given) and port (0 likewise)."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port or 0
    except ValueError:
        raise UsageError(f"--root {text}: give {form}") from None
    if parts.scheme != "tcp" or parts.path or parts.query or parts.fragment or parts.username is not None:
        raise UsageError(f"--root {text}: give {form}")
    return host, port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reached_at(host: str) -> str:
    """How others call a host that listens there: one that listens everywhere by the address that packets leave by."""
    far = {"0.0.0.0": "192.0.2.1", "::": "2001:db8::1"}.get(host)  # of nobody
    return host if far is None else addresses.on_the_way_to(far) or socket.gethostname()


# Keys


def _key(args: argparse.Namespace, host: str, rank: int | None) -> str | None:
    """The path of this process's key; None if it needs none. Raises UsageError."""
    if not args.key:
        if _is_loopback(host) or os.environ.get("PSLITE_SECURITY", "").strip().lower() == "none":
            return None
        make = f"pslite keys DIR -n {args.workers or 'N'} -s {args.servers or 'N'}"
        raise UsageError(
            f"other hosts reach {host}, and there is no key: make some with `{make}` and give --key DIR, or set "
            "PSLITE_SECURITY=none for every process to accept that anybody on the network can take part"
        )
    path = Path(args.key)
    if path.is_dir():
        path = _key_in(path, args.role, rank)
    if not path.is_file():
        raise UsageError(f"--key {path}: no such file; the key comes from `pslite keys`, with roster.json beside it")
    return str(path.absolute())


def _key_in(directory: Path, role: str, rank: int | None) -> Path:
    if rank is not None:
        return directory / key_file(role, rank)
    found = sorted(directory.glob(f"{role}-*.key"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:4]) + (", ..." if len(found) > 4 else "")
        what = f"the keys of several {role}s ({names})" if found else f"no key of a {role}"
        raise UsageError(f"--key {directory}: it has {what}; give --rank, and the key of that rank")
    return found[0]


# The command line


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EXAMPLES.format(prog=prog),
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=27, width=79),
    )
    parser.add_argument("--role", choices=_ROLES, required=True, help="what the process is in the job")
    parser.add_argument(
        "--root",
        metavar="tcp://HOST:PORT",
        help="where the scheduler is; for itself, where to listen: without PORT on any free one, without HOST on the "
        "address of DMLC_NODE_HOST or --interface, else on the loopback",
    )
    parser.add_argument(
        "--rank",
        type=_number(0),
        metavar="R",
        default=os.environ.get("JOB_COMPLETION_INDEX") or None,
        help="of servers, or of workers, from 0 (default: JOB_COMPLETION_INDEX, or that of the only key in DIR; else "
        "the scheduler gives one)",
    )
    parser.add_argument(
        "--key",
        metavar="FILE_OR_DIR",
        default=os.environ.get("PSLITE_KEY_FILE") or None,
        help="this process's key, or where the keys of the job are (default: PSLITE_KEY_FILE)",
    )
    for option, name, what in (("-n", "workers", "WORKER"), ("-s", "servers", "SERVER")):
        parser.add_argument(
            option,
            f"--num-{name}",
            dest=name,
            type=_number(1),
            metavar="N",
            default=os.environ.get(f"DMLC_NUM_{what}") or None,
            help=f"number of {name} (default: DMLC_NUM_{what}; the scheduler's counts)",
        )
    parser.add_argument(
        "--interface", metavar="NAME", help="the network interface at which others reach a server or the scheduler"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number that is at least {least}")
        return int(text)

    return parse
