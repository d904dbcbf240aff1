"""Runs cases: ``python -m tests.cases --cases 1,3 --trials 30``, or one trial again: ``--cases 1 --seed 4711``."""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.harness import leaks

from . import table
from .attempt import attempt
from .case import Case, Trial, load

COMMAND = "python -m tests.cases"


def calls(case: Case, trials: int, seed: int) -> Iterator[tuple[list[Trial], str]]:
    """Call a case, each time with the next seed, until it has made so many trials; with what was wrong, to be read."""
    done = 0
    while done < trials:
        found = attempt(case, seed)
        yield found, _told(case, seed, found)
        done += len(found)
        seed += 1


def _told(case: Case, seed: int, trials: Sequence[Trial]) -> str:
    lines = []
    for trial in trials:
        if not trial.ok:
            lines.append(f"{case.id}: lost {trial.lost}, doubled {trial.doubled}, hung {trial.hung}")
            lines += trial.wrong
    return "\n".join([*lines, f"replay: {COMMAND} --cases {case.id} --trials 1 --seed {seed}"]) if lines else ""


def main() -> int:
    args = _parser().parse_args()
    cases = load()
    results = table.read(args.json) if args.json else {}
    leaks.watch()
    logging.disable(logging.WARNING)  # what a case has go wrong is logged
    say(f"{COMMAND} --seed {args.seed}")
    failed = False
    for case in choose(cases, args.cases):
        if lacking := case.missing():
            say(f"skipped: {lacking}")
            continue
        count = {"quick": max(case.quick, 1), "soak": case.soak}.get(args.trials) or int(args.trials)
        kept = results.setdefault(case.id, [])
        for trials, wrong in calls(case, count, args.seed):
            kept += trials
            failed |= bool(wrong)
            say(f"{case.id}: {len(kept)} trials{', FAILED' if wrong else ''}")
            if wrong:
                say(wrong)
            if args.json:
                table.write(args.json, results)
    if args.table:
        say(table.markdown(cases, results))
    if args.update:
        table.update(args.update, cases, results)
    return int(failed)


def choose(cases: Sequence[Case], words: str) -> list[Case]:
    """Cases by number or id; all, if none is named."""
    names = [name for name in words.split(",") if name]
    known = {str(case.number) for case in cases} | {case.id for case in cases}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"{COMMAND}: no case {unknown[0]!r}; there are {', '.join(case.id for case in cases)}")
    return [case for case in cases if not names or str(case.number) in names or case.id in names]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--cases", default="", metavar="1,2", help="numbers or names of cases (default: all)")
    parser.add_argument("--trials", default="quick", metavar="N", help="quick, soak, or a number for each case")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="of the first trial")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the trials to those of a file")
    parser.add_argument("--table", action="store_true", help="print a table of all trials")
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table into a document")
    return parser


if __name__ == "__main__":
    sys.exit(main())
