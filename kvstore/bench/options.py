"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from kvstore import KVStore
from pslite.config import TRANSPORTS
from pslite.errors import ConfigError

from . import jobs, workloads

SERVER_SIDES = ("none", "sgd", "mom", "adam", "2bit")
TYPES = ("dist_sync", "dist_async")
SWEEPS = ("sizes", "keys", "workers")

_DESCRIPTION = """\
Time rounds in which every worker pushes all keys and pulls all. Each job is
started by the launcher; with --peer, jobs of ours and of the peer alternate.
"""
_EXAMPLES = """\
examples:
  pslite bench -n 2 --workload resnet50 --limit
  pslite bench -n 2 --workload resnet50 --peer mxnet --peer-python mx/bin/python
  pslite bench --sweep sizes --plot sizes.png
"""


@dataclass(frozen=True)
class Options:
    """The options, validated; ``transport`` None is the store's default."""

    workload: str = "resnet50"
    server: str = "none"
    workers: int = 1
    servers: int = 1
    type: str = "dist_sync"
    transport: str | None = None
    peer: str | None = None
    peer_python: str = sys.executable
    limit: bool = False
    repeat: int = 3
    rounds: int = 8
    arrays: str = "plain"
    calls: str = "list"
    busy_worker: bool = False
    sweep: tuple[str, ...] = ()
    json: bool = False
    plot: str | None = None


def parse(argv: Sequence[str], prog: str) -> Options:
    """Raises ConfigError, and SystemExit as argparse does."""
    args = vars(_parser(prog).parse_args(argv))
    if args["server"] is None:
        args["server"] = "sgd" if args["workload"] == "rowsparse" else "none"
    options = Options(**args | {"sweep": tuple(dict.fromkeys(args["sweep"]))})
    check(options)
    return options


def check(options: Options) -> None:
    """Raise ConfigError for what does not go together."""
    if options.workload == "pairs10m":
        others = Options(workload="pairs10m", transport=options.transport, rounds=options.rounds, json=options.json)
        if options != others:
            raise _refused("--workload", "pairs10m", "it takes --transport, --rounds and --json only")
        return
    workloads.workload(options.workload)
    if options.arrays == "empty" and not hasattr(KVStore, "empty"):
        raise _refused("--arrays", "empty", "this version has no kv.empty; give plain")
    if options.workload == "rowsparse" and options.server != "sgd":
        raise _refused("--server", options.server, "rowsparse is measured with sgd")
    if options.plot is not None:
        if not options.sweep:
            raise _refused("--plot", options.plot, "it needs --sweep, whose points it shows")
        if importlib.util.find_spec("matplotlib") is None:
            raise _refused("--plot", options.plot, "matplotlib is not installed: pip install 'pslite[bench]'")
    if options.peer == "mxnet" and options.type == "dist_async" and options.server not in ("sgd", "mom", "adam"):
        raise _refused("--server", options.server, "MXNet's dist_async needs an optimizer: sgd, mom or adam")
    if options.peer in ("gloo", "mpi"):
        if (options.server, options.type) != ("none", "dist_sync"):
            raise _refused("--peer", options.peer, "an all-reduce is compared with --server none --type dist_sync only")
        if options.workload == "rowsparse":
            raise _refused("--peer", options.peer, "it has no row-sparse arrays; mxnet has")


def _refused(name: str, value: str, allowed: str) -> ConfigError:
    return ConfigError(name=name, value=value, allowed=allowed)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=27, width=79),
    )
    job = parser.add_argument_group("what is measured")
    names = ", ".join((*workloads.NAMES, "pairs10m"))
    job.add_argument("--workload", default="resnet50", metavar="NAME", help=f"{names} (default: resnet50)")
    job.add_argument("-n", "--workers", type=_count, default=1, metavar="N", help="number of workers (default: 1)")
    job.add_argument("-s", "--servers", type=_count, default=1, metavar="N", help="number of servers (default: 1)")
    job.add_argument("--server", choices=SERVER_SIDES, help="what servers do with a push (default: none, they sum)")
    job.add_argument("--type", choices=TYPES, default="dist_sync", help="of the store (default: dist_sync)")
    job.add_argument(
        "--transport", choices=TRANSPORTS, help="how bytes travel (default: the store's); tcp without encryption"
    )
    job.add_argument("--arrays", choices=("plain", "empty"), default="plain", help="numpy's own, or kv.empty's")
    job.add_argument("--calls", choices=("list", "each"), default="list", help="a list of keys, or a call for each key")
    job.add_argument("--busy-worker", action="store_true", help="workers compute in pure Python meanwhile")
    against = parser.add_argument_group("against what")
    against.add_argument("--peer", choices=tuple(jobs.PEERS), help="run this peer in turn with us")
    against.add_argument(
        "--peer-python", default=sys.executable, metavar="PATH", help="the peer's interpreter (default: this one)"
    )
    against.add_argument("--limit", action="store_true", help="measure what memory allows, too")
    run = parser.add_argument_group("how")
    run.add_argument("--rounds", type=_count, default=8, metavar="N", help="timed rounds of a job (default: 8)")
    run.add_argument("--repeat", type=_count, default=3, metavar="N", help="jobs of each kind (default: 3)")
    run.add_argument(
        "--sweep",
        choices=SWEEPS,
        action="append",
        default=[],
        help="sizes of one key (1 KB to 1 GB), numbers of keys (1 to 100,000) or of workers (1 to 8); repeatable",
    )
    run.add_argument("--json", action="store_true", help="print JSON instead of tables")
    run.add_argument("--plot", metavar="FILE", help="write the sweeps as a PNG")
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number that is at least 1")
    return int(text)
