"""``pslite scale``: change how many processes a running job has."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import control
from .spec import UsageError

_DESCRIPTION = "Start more workers of a running job, or end some. It was started with --elastic, on this host."


def main(argv: Sequence[str] | None = None, prog: str = "pslite scale") -> int:
    """Run it with these arguments (default: the process's). Returns the exit status."""
    args = _parser(prog).parse_args(sys.argv[1:] if argv is None else argv)
    try:
        sys.stdout.write(control.ask(args.job or _the_only_job(), {"workers": args.workers}) + "\n")
    except UsageError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 1
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--workers", type=int, required=True, metavar="N", help="how many workers shall run")
    parser.add_argument(
        "--job", type=Path, metavar="DIR", help="the job's directory, which its launcher prints (default: the only one)"
    )
    return parser


def _the_only_job() -> Path:
    found = control.jobs()
    if len(found) != 1:
        listed = ": " + ", ".join(map(str, found)) if found else ""
        raise UsageError(f"{len(found) or 'no'} elastic jobs of this user run on this host{listed}; give --job DIR")
    return found[0]
