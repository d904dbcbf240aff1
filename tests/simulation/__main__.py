"""Runs schedules: ``python -m tests.simulation --count 100000 --jobs 2``, or one of them again: ``--seed 4711``."""

from __future__ import annotations

import argparse
import sys

from . import campaign
from .bugs import BUGS


def main() -> int:
    parser = argparse.ArgumentParser(prog=campaign.COMMAND, description=__doc__)
    parser.add_argument("--count", type=int, default=5000, help="schedules (default: %(default)s)")
    parser.add_argument("--first", type=int, default=campaign.first_seed(), help="seed of the first of them")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="run this schedule alone, and print its last events")
    parser.add_argument("--bug", default="", choices=sorted(BUGS), help="with this bug in the code")
    parser.add_argument("--shard", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.seed is not None:
        result = campaign.run_one(args.seed, args.bug)
        print(campaign.told(result, args.bug) if result.violation else f"seed {args.seed}: no promise was broken")
        print(f"{result.events} events, {result.seconds:.3f} s of virtual time, digest {result.digest:08x}")
        return 1 if result.violation else 0
    if args.shard:
        index, shards = map(int, args.shard.split("/"))
        seeds = range(args.first + index, args.first + args.count, shards)
        campaign.run_here(seeds, args.bug, lambda result: print(campaign.line(result), flush=True))
        return 0
    print(f"seeds from {args.first}", flush=True)
    summary = campaign.run(args.first, args.count, args.jobs)
    for result in summary.failed:
        print(campaign.told(result))
    print(summary)
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
