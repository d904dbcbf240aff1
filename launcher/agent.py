"""The agent owns the processes of one host; ``protocol`` says what it is told and what it tells.

Run as ``python -m launcher.agent``. Every process leads its own process group, and only these groups are ever
signalled. When the agent's stdin closes, because the launcher is done or dead, everything ends within four seconds;
also when beats are due, through a carrier, and none comes.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import sys
import time
from dataclasses import asdict
from typing import Any

from .addresses import NoAddress
from .child import Child, Lines, adopt_orphans, reap_orphans
from .error_record import ErrorRecord, forget_error_record, read_error_record
from .keeper import allow_many_descriptors
from .keys import key_file
from .lost import LostList
from .moves import Done, ScaleError
from .protocol import BEAT, PROTOCOL, Message, MessageReader, encode
from .pulse import Pulse
from .rendezvous import Rendezvous
from .servers import Servers
from .signals import SignalPipe
from .spec import JOB_VARIABLES
from .survey import look, reach

_ORPHAN_GRACE = 3.0  # seconds from SIGTERM to SIGKILL once nobody gives orders any more
_CUT_OFF_GRACE = 1.0  # the same when beats have stopped: time has passed already
_KILL_WAIT = 1.0  # seconds for SIGKILL to take effect
_LOST_POLL = 250  # milliseconds between looks at lost.json
_ENDING_POLL = 20  # milliseconds between looks at groups that are to end
_STRAGGLER_POLL = 500  # milliseconds between looks at groups that have outlived their leader
_CHUNK = 1 << 16
_PAUSE_AT = 1 << 20  # bytes of events the launcher has not read: from there on processes wait in their own writes


class Agent:
    """The event loop over orders, signals, the output of processes, and the events on their way out."""

    def __init__(self, orders: int, events: int, signals: SignalPipe, silence: float = 0) -> None:
        self._orders, self._events, self._signals = orders, events, signals
        self._pulse = Pulse(silence, time.monotonic()) if silence else None  # of the launcher, if beats are due
        self._beat_at = time.monotonic()  # when to give the next beat ourselves
        self._reader = MessageReader()
        self._children: list[Child] = []
        self._rendezvous: Rendezvous | None = None
        self._cwd: str | None = None  # where processes run, if not here
        self._servers: Servers | None = None  # while there are restarts: what is kept of them, and what moves
        self._max_restarts = 0  # of each process; 0 also from the moment on that the job is being ended
        self._shrinks = False  # workers that a signal ended are not started again
        self._replicas = 0  # servers that go on for one that a signal ended, which is not started again
        self._lost: LostList | None = None  # while the others may go on without processes that are lost
        self._look_at = 0.0  # when to look at it next
        self._limits: tuple[int, int] | None = None  # of open descriptors in processes, if they are not the agent's
        self._keys = False  # every process has a key
        self._out = bytearray()  # events the launcher has not taken yet
        self._launcher_lives = True
        self._grace = _ORPHAN_GRACE
        self._kill_at: float | None = None  # set once everything is to end
        self._killed = False

    def run(self) -> None:
        """Serve until everything has ended."""
        os.set_blocking(self._events, False)
        self._out += b"\n"  # a login script may have begun a line
        self._send({"event": "hello", "protocol": PROTOCOL} | _ssh_connection())
        try:
            while not self._finished():
                self._turn()
        finally:
            self._signal_groups(signal.SIGKILL)
            if self._rendezvous:
                self._rendezvous.close()
            os.set_blocking(self._events, True)
            self._flush()

    def _turn(self) -> None:
        """Wait for one thing to happen, and act on it."""
        pipes = {fd: child for child in self._children for fd in child.pipes}
        poller = select.poll()
        poller.register(self._signals, select.POLLIN)
        if self._kill_at is None:
            poller.register(self._orders, select.POLLIN)
        if self._out:
            poller.register(self._events, select.POLLOUT)
        if len(self._out) < _PAUSE_AT:
            for fd in pipes:
                poller.register(fd, select.POLLIN)
        if self._servers:
            self._servers.register(poller)
        ready = {fd for fd, _ in poller.poll(self._timeout())}
        if self._servers and self._servers.serve(ready) and self._rendezvous:
            self._write_processes(self._rendezvous)
        for fd in ready & pipes.keys():
            self._send_lines(pipes[fd], pipes[fd].read(fd))
        if self._signals.fileno() in ready:
            self._on_signals()
        if self._orders in ready:
            self._on_orders()
        for child in self._children:
            child.forget_empty_group()
        self._look_for_lost()
        self._beat()
        self._escalate()
        self._flush()

    def _timeout(self) -> int | None:
        if self._kill_at is not None:
            return _ENDING_POLL
        if self._lost is not None or self._pulse is not None:
            return _LOST_POLL
        return _STRAGGLER_POLL if any(c.group_lives and c.exit is not None for c in self._children) else None

    # Orders, signals, and the end

    def _on_orders(self) -> None:
        data = os.read(self._orders, _CHUNK)
        if not data:
            self._end()
        if self._pulse is not None:
            self._pulse.heard(time.monotonic())
        for order in self._reader.feed(data):
            self._obey(order)

    def _obey(self, order: Message) -> None:
        match order["do"]:
            case "open":
                self._open(order)
            case "start":
                self._start(order)
            case "add":
                self._add(order)
            case "kill":
                for child in self._children:
                    if child.id == order["id"]:
                        child.kill(order["pid"], order["signal"])
            case "signal":
                self._stop_restarting()
                self._signal_groups(order["signal"])
            case "scale":
                self._scale(order["servers"])
            case "look":
                self._send({"event": "looked"} | look(order["cwd"]))
            case "reach":
                self._send({"event": "reached", "errors": [reach(*address) for address in order["addresses"]]})
            case "pause" if self._pulse is not None:
                self._pulse.pause()

    def _on_signals(self) -> None:
        for signum in self._signals.read():
            if signum == signal.SIGCHLD:
                self._reap()
            elif signum == signal.SIGTERM:
                self._end()

    def _beat(self) -> None:
        """Through a carrier, show that there is a way; without one nobody will hear of the end of all this."""
        now = time.monotonic()
        if self._pulse is None:
            return
        if now >= self._beat_at and len(self._out) < _PAUSE_AT:
            self._beat_at = now + BEAT
            self._send({"event": "beat"})
        if self._pulse.is_lost(now) and self._launcher_lives:
            self._launcher_lives = False
            self._out.clear()
            self._end(_CUT_OFF_GRACE)

    def _end(self, grace: float = _ORPHAN_GRACE) -> None:
        """Begin to end everything; further turns finish it."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + min(self._grace, grace)
            self._stop_restarting()
            self._signal_groups(signal.SIGTERM)

    def _stop_restarting(self) -> None:
        self._max_restarts, self._lost = 0, None
        self._stop_moving()

    def _escalate(self) -> None:
        if self._kill_at is not None and not self._killed and time.monotonic() >= self._kill_at:
            self._killed = True
            self._signal_groups(signal.SIGKILL)

    def _finished(self) -> bool:
        if self._kill_at is None:
            return False
        # A process in an uninterruptible system call outlives SIGKILL: wait for it no longer.
        out_of_time = time.monotonic() >= self._kill_at + _KILL_WAIT
        return out_of_time or not any(child.group_lives for child in self._children)

    # Processes

    def _open(self, order: Message) -> None:
        """Listen for the scheduler, which will be here."""
        try:
            self._send({"event": "opened", "root": self._place().listen(order)})
        except (NoAddress, OSError) as error:
            self._send({"event": "refused", "error": str(error)})

    def _place(self) -> Rendezvous:
        """Where the processes of this host meet; made at the first order that needs it."""
        if self._rendezvous is None:
            self._rendezvous = Rendezvous()
            self._send({"event": "placed", "directory": str(self._rendezvous.directory)})
        return self._rendezvous

    def _start(self, order: Message) -> None:
        try:
            rendezvous = self._place()
            rendezvous.join(order["job"], order["root"])
            rendezvous.add_keys(order["keys"])
        except OSError as error:
            self._send({"event": "refused", "error": str(error)})
            return
        self._grace, self._cwd, self._keys = order["grace"], order["cwd"], bool(order["keys"])
        self._max_restarts, self._shrinks = order["max_restarts"], order["shrinks"]
        self._replicas = order["replicas"]
        if self._max_restarts or self._shrinks or self._replicas:
            self._lost = LostList(rendezvous.directory)
        if self._max_restarts:
            self._limits = allow_many_descriptors()
        self._children = [Child(process) for process in order["processes"]]
        if self._max_restarts and not self._replicas:
            ranks = [child.rank for child in self._children if child.role == "server"]
            processes = sum(child.exit is None for child in self._children if child.role == "server")
            self._servers = Servers(ranks, processes, self._start_server, self._scaled, self._notice) if ranks else None
        for child in self._children:
            if child.exit is None:
                self._launch(child, rendezvous)
                self._write_processes(rendezvous)

    def _add(self, order: Message) -> None:
        """One more process for the running job."""
        if self._rendezvous is not None and self._kill_at is None:
            self._rendezvous.add_keys(order["keys"])
            self._children.append(Child(order["process"]))
            self._launch(self._children[-1], self._rendezvous)
            self._write_processes(self._rendezvous)

    def _launch(self, child: Child, rendezvous: Rendezvous) -> None:
        inherited = {name: value for name, value in os.environ.items() if name not in JOB_VARIABLES}
        env = inherited | child.env | rendezvous.env(child.role)
        if self._pulse is not None and "PATH" not in child.env:
            # Elsewhere nobody has activated an environment: ``python`` shall be the one that runs the agent.
            env["PATH"] = os.pathsep.join(filter(None, (os.path.dirname(sys.executable), env.get("PATH"))))
        if self._keys:
            env["PSLITE_KEY_FILE"] = str(rendezvous.key(key_file(child.role, child.rank)))
        descriptors = rendezvous.descriptors(child.role)
        orders = self._servers.connect(child.rank) if self._servers and child.role == "server" else None
        if orders:
            env["PSLITE_AGENT_FD"] = str(orders.fileno())
            descriptors += (orders.fileno(),)
        try:
            child.start(env, descriptors, self._limits, self._cwd)
        except OSError as error:
            text = f"{error.strerror}: {error.filename or child.argv[0]}"
            self._send({"event": "failed", "id": child.id, "code": child.exit, "error": text})
        else:
            self._send({"event": "started", "id": child.id, "pid": child.pid})
        finally:
            if orders:
                orders.close()

    def _reap(self) -> None:
        ended = [
            (code, child, self._error_record(code, child))
            for child in self._children
            if (code := child.ended()) is not None
        ]
        for code, child, record in sorted(ended, key=_suspicion):
            again = code < 0 and child.restarts < self._max_restarts and not self._can_do_without(child.role)
            if child.role == "server" and self._server_ended(child, code, again):
                again, code, record = False, 0, None
            if again:
                child.signal_group(signal.SIGKILL)  # its helpers must not get in the way of its successor's
            for lines in child.last_words():
                self._send_lines(child, lines)
            if again and self._rendezvous:
                self._restart(child, code, self._rendezvous)
            else:
                self._over(child, code, record)
        reap_orphans({child.pid for child in self._children})
        if ended and self._rendezvous:
            self._write_processes(self._rendezvous)

    def _can_do_without(self, role: str) -> bool:
        return (self._shrinks and role == "worker") or (self._replicas > 0 and role == "server")

    def _restart(self, child: Child, code: int, rendezvous: Rendezvous) -> None:
        self._send({"event": "died", "id": child.id, "code": code})
        forget_error_record(rendezvous.directory, child.role, child.rank)
        child.clear_away()
        child.restarts += 1
        self._launch(child, rendezvous)

    def _over(self, child: Child, code: int, record: ErrorRecord | None) -> None:
        child.exit = code
        self._send({"event": "exited", "id": child.id, "code": code} | ({"record": asdict(record)} if record else {}))
        if self._servers and child.role == "server":
            self._servers.forget(child.rank)
        if child.role == "scheduler" and self._rendezvous:
            self._rendezvous.stop_listening()
            self._stop_moving()

    # Servers that come and go

    def _scale(self, servers: int) -> None:
        try:
            if self._servers is None:
                raise ScaleError("servers can only be moved with --max-restarts 1 or more")
            self._servers.scale(servers)
        except ScaleError as error:
            self._scaled(Done((), str(error)))

    def _scaled(self, done: Done) -> None:
        moved = [[rank.rank, rank.source, rank.goal, rank.seconds] for rank in done.moved]
        servers = self._servers.moves.served_by() if self._servers else 0
        self._send({"event": "scaled", "servers": servers, "moved": moved, "error": done.error})

    def _start_server(self, process: int) -> None:
        """Start a process that did not run, or runs no more."""
        for child in self._children:
            if (child.role, child.rank) == ("server", process) and self._rendezvous:
                child.signal_group(signal.SIGKILL)  # what its predecessor may have left
                child.clear_away()
                self._launch(child, self._rendezvous)

    def _server_ended(self, child: Child, code: int, again: bool) -> bool:
        """Free its ranks, for who comes in its place. Returns whether it had none, so that nobody misses it."""
        if self._servers is None:
            return False
        if self._servers.moves.ranks_of(child.rank) and not again:
            self._stop_moving()
            return False
        because = f"exit code {code}" if code >= 0 else f"signal {-code}"
        self._servers.ended(child.rank, because)
        idle = not self._servers.moves.ranks_of(child.rank)
        if idle and code and self._max_restarts:
            self._notice(child.rank, f"its process (pid {child.pid}) ended: {because}; it had no shard")
        return idle

    def _stop_moving(self) -> None:
        if self._servers:
            self._servers.over()

    def _look_for_lost(self) -> None:
        """The launcher knows which agent has them."""
        now = time.monotonic()
        if self._lost is not None and now >= self._look_at:
            self._look_at = now + _LOST_POLL / 1000
            for role, rank, pid in self._lost.news():
                if self._servers and role == "server":
                    rank = self._servers.moves.home.get(rank, rank)  # the process that is to have it
                self._send({"event": "lost", "role": role, "rank": rank, "pid": pid})

    def _error_record(self, code: int, child: Child) -> ErrorRecord | None:
        if code == 0 or self._rendezvous is None:
            return None
        return read_error_record(self._rendezvous.directory, child.role, child.rank)

    def _signal_groups(self, signum: int) -> None:
        for child in self._children:
            child.signal_group(signum)

    def _write_processes(self, rendezvous: Rendezvous) -> None:
        """For the scheduler: who is alive but has not joined, and who ended before joining."""
        path = rendezvous.directory / "processes.json"
        fresh = path.with_suffix(".tmp")
        fresh.write_text(json.dumps(self._table()), encoding="ascii")
        fresh.replace(path)

    def _table(self) -> list[dict[str, Any]]:
        """A line for each worker, server rank and scheduler."""
        if self._servers is None:
            return [child.as_dict() for child in self._children]
        lines = [child.as_dict() for child in self._children if child.role != "server"]
        of_process = {child.rank: child.as_dict() for child in self._children if child.role == "server"}
        for at, (rank, process) in enumerate(self._servers.moves.home.items()):
            lines.insert(1 + at, of_process[process] | {"rank": rank, "restarts": self._servers.restarts[rank]})
        return lines

    # Events

    def _notice(self, server: int, text: str) -> None:
        self._send({"event": "notice", "text": f"server {server}: {text}"})

    def _send_lines(self, child: Child, lines: Lines | None) -> None:
        if lines and lines[1]:
            self._send({"event": "output", "id": child.id, "stream": lines[0], "lines": lines[1]})

    def _send(self, event: Message) -> None:
        if self._launcher_lives:
            self._out += encode(event)

    def _flush(self) -> None:
        """Write what the launcher takes."""
        try:
            while self._out:
                del self._out[: os.write(self._events, self._out)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._launcher_lives = False
            self._out.clear()
            self._end()


def _suspicion(ended: tuple[int, Child, ErrorRecord | None]) -> tuple[bool, int, float]:
    """Of those found dead in one look, one killed by a signal is more likely the cause than one that gave up, a worker
    more likely than the servers that lost it, and the first error more likely than a later one."""
    code, child, record = ended
    return code >= 0, ("worker", "server", "scheduler").index(child.role), record.time if record else math.inf


def _ssh_connection() -> dict[str, str | None]:
    """The addresses of both ends of the connection, if ssh is the carrier (ssh(1), SSH_CONNECTION)."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    return {"came_to": words[2], "came_from": words[0]} if len(words) == 4 else {"came_to": None, "came_from": None}


def main(silence: float = 0) -> None:
    """Run the agent of this host on stdin and stdout. ``silence``: seconds without a beat that mean the end, or 0."""
    # Whatever prints by accident must not end up among the events.
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    adopt_orphans()
    # SIGINT and SIGHUP are the launcher's to judge: queued here, and left unread.
    with SignalPipe((signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)) as signals:
        Agent(sys.stdin.fileno(), events, signals, silence).run()


if __name__ == "__main__":
    main()
