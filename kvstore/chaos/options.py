"""The command line of ``pslite chaos``."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pslite.config import TRANSPORTS
from pslite.errors import ConfigError

from .plan import check

TYPES = ("dist_sync", "dist_async")
PEERS = ("mxnet",)
END_WITHIN = 15.0  # seconds

_DESCRIPTION = """\
Start real jobs, kill or stop processes at random times, and compare the values
with what was acknowledged. Words after -- are options for the launcher.
"""
_EXAMPLES = """\
examples:
  pslite chaos --faults kill-worker,kill-server --trials 10
  pslite chaos --faults kill-worker+kill-server --seed 7 --json
  pslite chaos --faults pause-server --type dist_sync -- --log-dir logs
  pslite chaos --faults kill-server --rounds 10 --seconds 1 -- --max-restarts 10
  pslite chaos --faults kill-worker --peer mxnet --peer-python mx/bin/python
"""


@dataclass(frozen=True)
class Options:
    """The options, validated; ``transport`` None is the store's default; trial t has the seed ``seed + t``."""

    workers: int = 3
    servers: int = 2
    seconds: float = 10.0
    faults: tuple[str, ...] = ("none", "pause-server", "kill-worker", "kill-server", "kill-scheduler")
    rounds: int = 1
    trials: int = 1
    seed: int = 0
    type: str = "dist_async"
    transport: str | None = None
    within: float = END_WITHIN
    must_survive: bool = False
    peer: str | None = None
    peer_python: str = sys.executable
    json: bool = False
    launcher: tuple[str, ...] = ()


def parse(argv: Sequence[str], prog: str) -> Options:
    """Raises ConfigError, and SystemExit as argparse does."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    args = vars(_parser(prog).parse_args(words[:at]))
    args["faults"] = tuple(check(case) for case in args["faults"].split(","))
    if args["seed"] is None:
        args["seed"] = secrets.randbelow(1_000_000)
    if args["seconds"] < 1:
        raise ConfigError(name="--seconds", value=args["seconds"], allowed="give at least 1")
    return Options(**args, launcher=tuple(words[at + 1 :]))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=27, width=79),
    )
    job = parser.add_argument_group("the jobs")
    job.add_argument("-n", "--workers", type=_count, default=3, metavar="N", help="number of workers (default: 3)")
    job.add_argument("-s", "--servers", type=_count, default=2, metavar="N", help="number of servers (default: 2)")
    job.add_argument("--type", choices=TYPES, default="dist_async", help="of the store (default: dist_async)")
    job.add_argument("--transport", choices=TRANSPORTS, help="how bytes travel (default: the store's)")
    harm = parser.add_argument_group("the harm")
    harm.add_argument(
        "--faults",
        default=",".join(Options.faults),
        metavar="CASE,...",
        help="kill-, restart-, stop-, pause- or freeze- with worker, server or scheduler, garbage- with server or "
        "scheduler, several in one round joined by +, or none (default: %(default)s)",
    )
    harm.add_argument("--seconds", type=float, default=10.0, metavar="S", help="length of a round (default: 10)")
    harm.add_argument(
        "--rounds", type=_count, default=1, metavar="N", help="of faults in each trial, when all go on (default: 1)"
    )
    harm.add_argument("--trials", type=_count, default=1, metavar="N", help="of each case (default: 1)")
    harm.add_argument("--seed", type=int, metavar="N", help="of the first trial; the next has the next number")
    within = "in which all must go on after a fault, and end when told to, or it hangs (default: 15)"
    harm.add_argument("--within", type=float, default=END_WITHIN, metavar="S", help=within)
    harm.add_argument("--must-survive", action="store_true", help="it is wrong if a job ends before its time")
    harm.add_argument("--json", action="store_true", help="print JSON instead of a table")
    against = parser.add_argument_group("against a peer")
    against.add_argument("--peer", choices=PEERS, help="do the same to jobs of this store, in turn with ours")
    against.add_argument(
        "--peer-python", default=sys.executable, metavar="PATH", help="the peer's interpreter (default: this one)"
    )
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number that is at least 1")
    return int(text)
