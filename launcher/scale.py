"""``pslite scale``: change how many processes a running job has."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import control
from .errors import UsageError

_DESCRIPTION = """\
Change a running job of this host: start more workers or end some, if it was started with --elastic; spread its shards
over more servers or fewer, if it was started with --max-restarts (and --max-servers). Nothing that was pushed is lost.
"""


def main(argv: Sequence[str] | None = None, prog: str = "pslite scale") -> int:
    """Run it with these arguments (default: the process's). Returns the exit status."""
    args = _parser(prog).parse_args(sys.argv[1:] if argv is None else argv)
    try:
        job = args.job or _the_only_job()
        if args.workers is not None:
            text = control.ask(job, {"workers": args.workers})
        else:
            text = control.ask(job, {"servers": args.servers}, within=None)
        sys.stdout.write(text + "\n")
    except UsageError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 1
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=_DESCRIPTION, allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workers", type=int, metavar="N", help="how many workers shall run")
    what.add_argument("--servers", type=int, metavar="N", help="how many server processes shall run")
    parser.add_argument(
        "--job", type=Path, metavar="DIR", help="the job's directory, which its launcher prints (default: the only one)"
    )
    return parser


def _the_only_job() -> Path:
    found = control.jobs()
    if len(found) != 1:
        listed = ": " + ", ".join(map(str, found)) if found else ""
        raise UsageError(f"{len(found) or 'no'} jobs of this user here can be scaled{listed}; give --job DIR")
    return found[0]
