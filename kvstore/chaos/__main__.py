"""``python -m kvstore.chaos``: the same as ``pslite chaos``."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence

from pslite.errors import ConfigError

from . import lanes, report
from .options import Options, parse
from .plan import plan
from .stores import OURS, Store, check_peer, stores
from .trial import Outcome, Trial
from .worker import Job

#: Elements of the keys, as multiples of the lanes' width: many small ones, whose calls are bundled, and some that
#: travel apart, of 40 KB to 2 MB for three workers.
_SIZES = (1,) * 12 + (600,) * 2 + (30_000,)


def main(argv: Sequence[str] | None = None, prog: str = "pslite chaos") -> int:
    """Do harm with these arguments (default: the process's). Returns 0, or 1 if a promise was broken.

    Raises SystemExit on ``--help`` (0), on mistakes in the command line (2), and at SIGTERM (143).
    """
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception: it ends the job that runs
    try:
        options = parse(sys.argv[1:] if argv is None else argv, prog)
        if options.peer:
            check_peer(options.peer_python)
        sys.stderr.write(f"{prog}: --seed {options.seed}\n")
        seeds = range(options.seed, options.seed + options.trials)
        tried = [(store, case, seed) for case in options.faults for seed in seeds for store in stores(options, case)]
        outcomes = [_try(options, *each) for each in tried]
    except ConfigError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    document = json.dumps(report.document(outcomes), indent=2) + "\n"
    sys.stdout.write(document if options.json else report.table(outcomes))
    return int(not all(outcome.ok for outcome in outcomes if outcome.store == OURS))


def _try(options: Options, store: Store, case: str, seed: int) -> Outcome:
    width = lanes.width(options.workers)
    job = Job(options.type, options.workers, tuple(width * times for times in _SIZES))
    rounds = [
        plan(case, seed, options.seconds, options.workers, options.servers, round) for round in range(options.rounds)
    ]
    with Trial(job, store, options.within) as trial:
        return trial.run(case, seed, options.seconds, rounds, options.must_survive)


if __name__ == "__main__":
    sys.exit(main())
