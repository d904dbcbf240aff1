"""``pslite-launch``: the launcher's command line."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial

from . import batch, boot, kubernetes
from .carriers.base import load
from .check import check
from .console import Console
from .errors import UsageError
from .hosts import Host
from .keys import JobKeys, KeysFailed
from .logs import LogFiles, Prefixer, wants_color
from .options import Options, parse
from .run import Job
from .signals import SignalPipe
from .spec import SET_AT_START, JobSpec, plan
from .sync import synchronize


def main(argv: Sequence[str] | None = None, prog: str = "pslite-launch") -> int:
    """Run the launcher with these arguments (default: the process's). Returns the exit status.

    Raises SystemExit on ``--help`` (0) and on mistakes in the command line (2).
    """
    arguments = sys.argv[1:] if argv is None else argv
    options = parse(arguments, prog)
    if (script := batch.script(options, os.environ, arguments)) is not None:
        sys.stdout.buffer.write(os.fsencode(script))
        return 0
    job = secrets.token_hex(8)
    try:
        if options.launcher == "kubernetes":
            _write_manifest(options, job)
            return 0
        carrier = load(options.launcher)
        hosts = carrier.hosts(options, os.environ)
        carry = partial(carrier.argv, options=options)
        spec = plan(options, hosts, os.environ, boot.import_root(), os.getcwd())
        if options.dry_run:
            sys.stdout.write(_describe(spec, carry, options.format))
            return 0
        if options.check:
            return check(spec, job, carry)
        if options.sync_dst_dir is not None:
            synchronize(hosts, options)
        keys = _keys(spec)
        files = _open_log_files(options, job, spec)
    except (UsageError, KeysFailed) as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        with SignalPipe(_signals()) as signals:
            return _job(options, job, spec, carry, keys, files).run(signals)
    finally:
        if files:
            files.close()


def _keys(spec: JobSpec) -> JobKeys | None:
    if not spec.keys:
        return None
    roles = [process.role for process in spec.processes]
    workers = spec.elastic.most if spec.elastic is not None else 0
    return JobKeys(max(workers, roles.count("worker")), roles.count("server"))


def _job(
    options: Options,
    job: str,
    spec: JobSpec,
    carry: Callable[[Host], list[str]],
    keys: JobKeys | None,
    files: LogFiles | None,
) -> Job:
    colors = {
        stream: wants_color(options.color, os.environ, os.isatty(descriptor))
        for stream, descriptor in (("stdout", 1), ("stderr", 2))
    }
    prefixer = Prefixer(spec.processes, prefix=options.prefix, timestamps=options.timestamps)
    return Job(
        spec, job, carry, keys, grace=options.grace, console=Console(), colors=colors, prefixer=prefixer, files=files
    )


def _signals() -> list[int]:
    """SIGTSTP for agents elsewhere, which must know of a pause.

    SIGINT always, for a job in the background of a script inherits it ignored; SIGHUP not under nohup.
    """
    ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, signal.SIGTSTP, *([] if ignores_hangup else [signal.SIGHUP])]


def _open_log_files(options: Options, job: str, spec: JobSpec) -> LogFiles | None:
    if options.log_dir is None:
        return None
    try:
        return LogFiles(options.log_dir, job, spec.processes)
    except OSError as error:
        raise UsageError(f"--log-dir {options.log_dir}: {error.strerror}: {error.filename}") from error


def _write_manifest(options: Options, job: str) -> None:
    """What ``--launcher kubernetes`` does."""
    kubernetes.check(options)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # of another file system
    spec = plan(options, [kubernetes.HOST], environ)
    found = kubernetes.manifest(options, spec, job, _keys(spec))
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    if spec.keys:
        text = "the Secrets among these objects have the private keys of the job: pass all on to `kubectl create -f -`"
    else:
        text = "PSLITE_SECURITY=none: whoever can connect to the pods can read and change the model"
    sys.stderr.write(f"pslite: {text}\n")


def _describe(spec: JobSpec, carry: Callable[[Host], list[str]], form: str) -> str:
    """What ``--dry-run`` prints."""
    if form == "json":
        processes = [process.as_dict() for process in spec.processes]
        hosts = [{"name": host.name, "agent": carry(host), "cwd": spec.cwd.get(host.name)} for host in spec.hosts]
        document = {"transport": spec.transport, "keys": spec.keys, "set_at_start": SET_AT_START}
        document |= {"hosts": hosts, "processes": processes}
        return json.dumps(document, indent=2) + "\n"
    lines = [f"agent on {host.name}: {shlex.join(carry(host))}" for host in spec.hosts if not host.is_here]
    for process in spec.processes:
        lines.append(f"{process.label} on {process.host}")
        lines.append(f"  command: {shlex.join(process.argv)}")
        lines += [f"  env: {name}={shlex.quote(value)}" for name, value in sorted(process.env.items())]
    lines.append(f"set at start: {' '.join(SET_AT_START)} (the last for the scheduler only)")
    return "\n".join(lines) + "\n"
