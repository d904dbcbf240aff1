"""``python -m kvstore.bench``: the same as ``pslite bench``."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence

from pslite.errors import ConfigError

from . import jobs, pairs, report
from .compare import compare
from .options import Options, parse
from .plot import plot
from .processes import JobFailed
from .sweep import sweep
from .workloads import workload


def main(argv: Sequence[str] | None = None, prog: str = "pslite bench") -> int:
    """Run the benchmark with these arguments (default: the process's). Returns the exit status.

    Raises SystemExit on ``--help`` (0), on mistakes in the command line (2), and at SIGTERM (143).
    """
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception: it ends the job that runs
    try:
        options = parse(sys.argv[1:] if argv is None else argv, prog)
        if options.peer:
            jobs.check_peer(options.peer, options.peer_python)
        text, document = _run(options)
    except ConfigError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 2
    except JobFailed as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    sys.stdout.write(json.dumps(document, indent=2) + "\n" if options.json else text)
    return 0


def _run(options: Options) -> tuple[str, dict[str, object]]:
    """The tables, and what ``--json`` prints."""
    if options.workload == "pairs10m":
        times = pairs.measure(options.rounds, options.transport)
        return report.pairs(times), report.document(pairs=times)
    if options.sweep:
        sweeps = [sweep(over, options) for over in options.sweep]
        if options.plot:
            plot(sweeps, options.plot)
        text = "\n".join(report.sweep(found) for found in sweeps)
        return text, report.document(sweeps=[found.as_dict() for found in sweeps])
    found = compare(workload(options.workload), options)
    return report.comparison(found), report.document(comparisons=[found.as_dict()])


if __name__ == "__main__":
    sys.exit(main())
