"""``pslite-launch``: the launcher's command line."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import sys
from collections.abc import Sequence

from . import local
from .console import Console
from .logs import LogFiles, Prefixer, wants_color
from .options import Options, parse
from .run import Job
from .signals import SignalPipe
from .spec import SET_AT_START, JobSpec, UsageError, plan


def main(argv: Sequence[str] | None = None, prog: str = "pslite-launch") -> int:
    """Run the launcher with these arguments (default: the process's). Returns the exit status.

    Raises SystemExit on ``--help`` (0) and on mistakes in the command line (2).
    """
    options = parse(sys.argv[1:] if argv is None else argv, prog)
    job = secrets.token_hex(8)
    try:
        spec = plan(options, os.environ, local.import_root())
        if options.dry_run:
            sys.stdout.write(_describe(spec, options.format))
            return 0
        files = _open_log_files(options, job, spec)
    except UsageError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 2
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        with SignalPipe(_signals()) as signals:
            return _job(options, job, spec, files).run(signals)
    finally:
        if files:
            files.close()


def _job(options: Options, job: str, spec: JobSpec, files: LogFiles | None) -> Job:
    colors = {
        stream: wants_color(options.color, os.environ, os.isatty(descriptor))
        for stream, descriptor in (("stdout", 1), ("stderr", 2))
    }
    prefixer = Prefixer(spec.processes, prefix=options.prefix, timestamps=options.timestamps)
    return Job(spec, job, grace=options.grace, console=Console(), colors=colors, prefixer=prefixer, files=files)


def _signals() -> list[int]:
    """SIGINT always, for a job in the background of a script inherits it ignored; SIGHUP not under nohup."""
    ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignores_hangup else [signal.SIGHUP])]


def _open_log_files(options: Options, job: str, spec: JobSpec) -> LogFiles | None:
    if options.log_dir is None:
        return None
    try:
        return LogFiles(options.log_dir, job, spec.processes)
    except OSError as error:
        raise UsageError(f"--log-dir {options.log_dir}: {error.strerror}: {error.filename}") from error


def _describe(spec: JobSpec, form: str) -> str:
    """What ``--dry-run`` prints."""
    if form == "json":
        processes = [process.as_dict() for process in spec.processes]
        document = {"transport": spec.transport, "set_at_start": SET_AT_START, "processes": processes}
        return json.dumps(document, indent=2) + "\n"
    lines = []
    for process in spec.processes:
        lines.append(f"{process.label} on {process.host}")
        lines.append(f"  command: {shlex.join(process.argv)}")
        lines += [f"  env: {name}={shlex.quote(value)}" for name, value in sorted(process.env.items())]
    lines.append(f"set at start: {' '.join(SET_AT_START)} (the last for the scheduler only)")
    return "\n".join(lines) + "\n"
