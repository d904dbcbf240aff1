"""``pslite keys``: the keys of a job whose processes are started by hand. Run as ``python -m pslite.keys``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import ConfigError
from .security import ROSTER, make

_DESCRIPTION = """\
Make a key pair for the scheduler, each server and each worker, in DIR. Then
give each process the path of its own file in PSLITE_KEY_FILE; on another host
it needs that file, and roster.json beside it, and no other.
"""


def main(argv: Sequence[str] | None = None, prog: str = "pslite keys") -> int:
    """Make the files with these arguments (default: the process's). Returns the exit status.

    Raises SystemExit on ``--help`` (0) and on mistakes in the command line (2).
    """
    args = _parser(prog).parse_args(argv)
    try:
        made = make(Path(args.directory), args.workers, args.servers)
    except ConfigError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 1
    if not args.quiet:
        sys.stdout.write("".join(f"{path}\n" for path in made))
        sys.stdout.write(f"set PSLITE_KEY_FILE to its own file for each process; all need {ROSTER} beside it\n")
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=_DESCRIPTION,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=27, width=79),
    )
    parser.add_argument("directory", metavar="DIR", help="where to; made with mode 0700 if it does not exist")
    parser.add_argument("-n", "--workers", type=_count, required=True, metavar="N", help="number of workers")
    parser.add_argument("-s", "--servers", type=_count, required=True, metavar="N", help="number of servers")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number that is at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
