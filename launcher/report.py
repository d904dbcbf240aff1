"""The report that is last on the screen when a job did not end well, or had to start processes again."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from .logs import LogFiles, Tails
from .supervise import Failed, HostLost, Interrupted, Overstayed, Process, Supervisor, signal_name, signal_text


def final_report(supervisor: Supervisor, tails: Tails, files: LogFiles | None) -> list[str]:
    """Its lines; none if the job ended well and nothing was started again."""
    lines = _failure_report(supervisor, tails, files)
    restarted = [p for p in supervisor.processes if p.restarts]
    if restarted:
        total = sum(p.restarts for p in restarted)
        count = f"{_restarts(total)}: " + ", ".join(f"{p.spec.label} ({p.restarts})" for p in restarted)
        lines.append(f"  {count}" if lines else f"pslite: ended well after {count}")
    return lines


def _failure_report(supervisor: Supervisor, tails: Tails, files: LogFiles | None) -> list[str]:
    match supervisor.cause:
        case Failed(process) as cause:
            if process.error:
                return _start_failure(process) + _others(cause)
            index = supervisor.processes.index(process)
            lines = _failure(process, supervisor.started_at)
            lines += [f"  log: {files.path(index, 'stderr')}"] if files else []
            return lines + _others(cause) + _tail(tails.of(index))
        case Interrupted(signum):
            return [f"pslite: stopped by {signal_name(signum)}", *_still_there(supervisor)]
        case Overstayed(processes):
            head = f"pslite: all workers ended with 0; {supervisor.grace:g} s later these still ran and were stopped:"
            return [head, *(f"  {p.where}{_ending(p)}" for p in processes)]
        case HostLost(host, reason, processes):
            lost = [f"  lost with it: {_names(processes, 'lost')}"] if processes else []
            return [f"pslite: {host}: {reason}", *lost]
        case _:
            return []


def _failure(process: Process, started_at: float) -> list[str]:
    assert process.exit is not None and process.ended is not None
    how = f"died: {signal_text(-process.exit)}" if process.exit < 0 else f"failed: exit code {process.exit}"
    because = f", caused by {process.caused_by}" if process.caused_by else ""
    gave_up = f"; gave up after {_restarts(process.restarts)}" if process.exit < 0 and process.restarts else ""
    lines = [f"pslite: {process.where} {how}, {process.ended - started_at:.1f} s after start{because}{gave_up}"]
    if process.record:
        lines.append(f"  error: {process.record.error}")
    if process.exit == -signal.SIGKILL and not process.lost:
        lines.append("  likely the kernel's out-of-memory killer: see dmesg")
    return lines


def _restarts(number: int) -> str:
    return f"{number} restart" if number == 1 else f"{number} restarts"


def _start_failure(process: Process) -> list[str]:
    lines = [f"pslite: {process.spec.label} on {process.spec.host} could not be started: {process.error}"]
    if len(process.spec.argv) == 1 and " " in process.spec.argv[0]:
        lines.append("  the command is a single word with spaces in it: give it unquoted, as separate words")
    elif process.spec.argv[0].endswith(".py"):
        lines.append(f"  a script is started by its interpreter: python {process.spec.argv[0]}")
    return lines


def _others(cause: Failed) -> list[str]:
    """Who failed, and who did not but was stopped. Those that failed while being stopped may say why."""
    failed = [*cause.others, *(p for p in cause.stopped if p.caused_by)]
    stopped = [p for p in cause.stopped if not p.caused_by]
    # When the cause never ended, the process in the first line is just one of those that failed because of it.
    known = cause.process.record is not None  # else all may have failed alike: a syntax error, a missing file
    because = [p for p in failed if (p.caused_by or (known and p.is_consequence)) and not cause.process.is_consequence]
    too = [p for p in failed if p not in because]
    rows = {"failed because of it": because, "failed too": too, "stopped after it": stopped}
    return [f"  {head}: {_names(processes, head)}" for head, processes in rows.items() if processes]


def _names(processes: Sequence[Process], head: str = "stopped") -> str:
    return ", ".join(p.spec.label + (_ending(p) if head.startswith("stopped") else "") for p in processes)


def _ending(process: Process) -> str:
    """How it took being stopped, where that is worth a word."""
    if process.exit is None:
        return " (still running)"
    if process.exit == -signal.SIGKILL:
        return " (killed)"
    if process.exit in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
        return ""
    if process.exit < 0:
        return f" ({signal_name(-process.exit)})"
    return f" (exit code {process.exit})"


def _still_there(supervisor: Supervisor) -> list[str]:
    started = [p for p in supervisor.processes if p.pid is not None]
    killed = [p for p in started if p.exit is None or p.exit == -signal.SIGKILL]
    return [f"  did not end by themselves: {_names(killed)}"] if killed else []


def _tail(lines: list[str]) -> list[str]:
    if not lines:
        return ["  it wrote nothing to stderr"]
    head = "  last line of its stderr:" if len(lines) == 1 else f"  last {len(lines)} lines of its stderr:"
    return [head, *(f"    {line}" for line in lines)]
