"""Runs a job: carries events and signals to the supervisor, its actions to the agents, and output to the console."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from .console import Console
from .control import Control
from .error_record import ErrorRecord
from .errors import UsageError
from .hosts import Host
from .joining import one_more
from .keys import JobKeys
from .link import AgentLink
from .logs import LogFiles, Prefixer, Tails
from .opening import NotReady, Opening, Orders
from .protocol import Message
from .rendezvous import make_directory
from .report import final_report
from .scaling import change, moved_text
from .signals import SignalPipe
from .spec import JobSpec, ProcessSpec
from .supervise import Action, Kill, Say, Send, Supervisor

_CHECK = 0.25  # seconds between looks at agents that may be cut off
_START_TIMEOUT = 60.0  # seconds for all agents to greet, unless the options say otherwise
_PAUSE_AT = 1 << 18  # bytes of output the terminal has not taken: then agents, and in turn processes, wait


class Job:
    """One run of a JobSpec. Everything happens in the thread that calls ``run``."""

    def __init__(
        self,
        spec: JobSpec,
        job: str,
        carry: Callable[[Host], list[str]],
        keys: JobKeys | None,
        *,
        grace: float,
        console: Console,
        colors: dict[str, bool],
        prefixer: Prefixer,
        files: LogFiles | None,
    ) -> None:
        self._spec = spec
        self._console, self._colors, self._prefixer, self._files = console, colors, prefixer, files
        self._tails = Tails(len(spec.processes))
        now = time.monotonic()
        self._elsewhere = not all(host.is_here for host in spec.hosts)
        self._supervisor = Supervisor(
            spec.processes, grace, now, spec.max_restarts, spec.shrinks, spec.replicas, self._elsewhere
        )
        self._opening = Opening(spec, job, grace, keys)
        within = _START_TIMEOUT if spec.start_timeout is None else spec.start_timeout
        self._greeted_by = now + (within or float("inf"))
        self._carry = carry
        self._agents: list[AgentLink] = []
        self._control: Control | None = None  # of an elastic job that runs
        self._own_directory: str | None = None  # with the socket of ``_control``, if no agent here has one
        self._ending = False  # the agents were told to end
        self._directories: dict[str, str] = {}  # of the job, by host

    def run(self, signals: SignalPipe) -> int:
        """Start everything, wait for the end, report. Returns the exit status."""
        try:
            for notice in self._spec.notices:
                self._say(notice)
            self._agents = [AgentLink(host, self._carry(host)) for host in self._spec.hosts]
            while not self._over():
                self._turn(signals)
            self._end_orders()
            while self._agents:
                self._turn(signals)
        finally:
            self._end_orders()  # after an error of our own: this is what ends the processes
            if self._own_directory is not None:
                shutil.rmtree(self._own_directory, ignore_errors=True)
        for line in final_report(self._supervisor, self._tails, self._files):
            self._console.write("stderr", line)
        self._console.drain(signals.fileno())
        return self._supervisor.status()

    def _over(self) -> bool:
        if not self._opening.started and self._supervisor.cause is not None:
            return True  # there is no process, and none will be
        return self._supervisor.finished(time.monotonic())

    def _end_orders(self) -> None:
        self._ending = True
        if self._control is not None:
            self._control.close()
            self._control = None
        for agent in self._agents:
            agent.end_orders()

    def _turn(self, signals: SignalPipe) -> None:
        """Wait for one thing to happen, and act on it."""
        blocked = self._console.flush()
        if self._console.broken and self._supervisor.cause is None:
            self._act(self._supervisor.signalled(signal.SIGPIPE, time.monotonic()))
        # Once the job is being stopped, its ends matter more than the memory that its last words take.
        listening = self._console.pending < _PAUSE_AT or self._supervisor.cause is not None
        poller = select.poll()
        poller.register(signals, select.POLLIN)
        if blocked is not None:
            poller.register(blocked, select.POLLOUT)
        if self._control is not None:
            poller.register(self._control, select.POLLIN)
        for agent in self._agents:
            agent.register(poller, listening)
        ready = {descriptor for descriptor, _ in poller.poll(self._timeout())}
        if signals.fileno() in ready:
            for signum in signals.read():
                self._on_signal(signum)
        if self._control is not None and self._control.fileno() in ready:
            self._control.serve(self._scale)
        for agent in list(self._agents):
            self._attend(agent, ready, listening)
        now = time.monotonic()
        if not self._opening.started and now >= self._greeted_by:
            for host in self._opening.missing()[:1]:
                self._lose(host, "no agent has answered from there in time")
        self._act(self._supervisor.tick(now))

    def _timeout(self) -> float | None:
        """Milliseconds, as poll() wants them, and rounded up so that the deadline has passed afterwards."""
        deadline = self._supervisor.deadline()
        waits = [] if deadline is None or self._ending else [max(0, deadline - time.monotonic())]
        waits += [_CHECK] if self._elsewhere else []
        return min(waits) * 1000 + 1 if waits else None

    def _on_signal(self, signum: int) -> None:
        if signum != signal.SIGTSTP:
            self._act(self._supervisor.signalled(signum, time.monotonic()))
            return
        for agent in self._agents:
            agent.send({"do": "pause"})
        os.kill(os.getpid(), signal.SIGSTOP)

    # Agents

    def _attend(self, agent: AgentLink, ready: set[int], listening: bool) -> None:
        """See what an agent has to say, and whether it is still there."""
        if agent.errors in ready:
            for line in agent.read_errors():
                self._say(f"{agent.host}: {line}")
        if agent.orders in ready:
            agent.flush()
        lost = agent.check(time.monotonic(), listening)
        if agent.fileno() not in ready and lost is None:
            return
        events = None if lost is not None else agent.receive()
        for event in events or ():
            self._on_event(agent, event)
        if events is None:
            self._gone(agent, lost)

    def _gone(self, agent: AgentLink, reason: str | None) -> None:
        self._agents.remove(agent)
        code = agent.close()
        if code == 0 and self._ending:
            return
        if agent.is_here:
            pids = [p.pid for p in self._supervisor.running() if p.spec.host == agent.host and p.pid is not None]
            _clean_up(pids, self._directories.get(agent.host))
            reason = "the launcher's agent died; its processes were killed"
        if not self._ending:
            self._lose(agent.host, reason or agent.why(code))

    def _lose(self, host: str, reason: str) -> None:
        now, needed = time.monotonic(), not self._opening.started
        self._act(self._supervisor.host_lost(host, reason, now, needed))

    def _orders(self, orders: Orders) -> None:
        for host, order in orders:
            self._order_to(host, order)

    def _open(self, agent: AgentLink, event: Message) -> None:
        """One step towards the start of all processes."""
        if self._supervisor.cause is not None:
            return
        try:
            match event["event"]:
                case "hello":
                    self._orders(self._opening.greeted(agent.host, event))
                case "opened":
                    self._take_requests(event["root"])
                    self._orders(self._opening.opened(event["root"]))
                case "refused":
                    raise NotReady(agent.host, event["error"])
        except NotReady as error:
            self._lose(error.host, str(error))

    def _on_event(self, agent: AgentLink, event: Message) -> None:
        now = time.monotonic()
        match event["event"]:
            case "hello" | "opened" | "refused":
                if event["event"] == "hello":
                    agent.greeted(event)
                self._open(agent, event)
            case "placed":
                self._directories[agent.host] = event["directory"]
            case "started":
                self._supervisor.started(event["id"], event["pid"], event.get("host", ""))
            case "output":
                self._output(event["id"], event["stream"], event["lines"])
            case "died":
                self._tails.forget(event["id"])
                self._act(self._supervisor.died(event["id"], event["code"]))
            case "lost":
                self._act(self._supervisor.lost(event["role"], event["rank"], event["pid"]))
            case "scaled":
                self._scaled(event)
            case "notice":
                self._say(event["text"])
            case "exited":
                record = ErrorRecord(**event["record"]) if "record" in event else None
                self._act(self._supervisor.exited(event["id"], event["code"], now, record))
            case "failed":
                self._act(self._supervisor.could_not_start(event["id"], event["error"], event["code"], now))

    def _take_requests(self, root: str) -> None:
        """Before any process starts: who reads the line may act on it at once."""
        if self._spec.elastic is None and not self._spec.shards:
            return
        first = self._spec.hosts[0]
        place = directory = self._directories.get(first.name)  # Ray's actors have theirs, which are of no use here
        if directory is None or not first.is_here:
            directory = self._own_directory = str(make_directory())
        self._control = Control(directory)
        if self._spec.elastic is not None:
            least, most = self._spec.elastic.least, self._spec.elastic.most
            self._say(f"{least} to {most} workers: pslite scale --job {directory} --workers N")
            if place is not None and (line := one_more(self._spec, root, place)):
                near = first.is_here or not self._spec.keys
                where = "" if near else f" on {first.name}, or with that key and roster.json from there"
                self._say(f"another one by hand{where}: {line}")
        if any(not process.starts for process in self._spec.processes):
            self._say(f"1 to {self._spec.shards} servers: pslite scale --job {directory} --servers N")

    def _scale(self, request: dict[str, Any]) -> str | None:
        """Carry out a request that came while the job runs; returns what to answer, None: ``_scaled`` does.

        Raises UsageError.
        """
        planned = change(self._spec, self._supervisor, request)
        if planned.servers is not None:
            servers = next(process.host for process in self._spec.processes if process.role == "server")
            self._order_to(servers, {"do": "scale", "servers": planned.servers})
            return None
        connected = {agent.host for agent in self._agents}
        if lost := [spec.host for spec in planned.start if spec.host not in connected]:
            raise UsageError(f"{lost[0]} is lost, where the next worker was to run")
        for spec in planned.start:
            self._start(spec)
        for process in planned.end:
            process.ending = True
            order = {"do": "kill", "id": self._supervisor.processes.index(process), "pid": process.pid}
            self._order_to(process.spec.host, order | {"signal": planned.signum})
        self._say(planned.text)
        return planned.text

    def _scaled(self, event: Message) -> None:
        """Servers have moved, or not all of them."""
        text = moved_text(event["servers"], event["moved"], event["error"])
        self._say(text)
        if self._control is not None:
            self._control.answer("error" if event["error"] else "done", text)

    def _start(self, spec: ProcessSpec) -> None:
        index = self._supervisor.add(spec)
        self._tails.grow()
        self._prefixer.add(spec)
        if self._files:
            self._files.add(spec)
        self._order_to(spec.host, self._opening.add(index, spec))

    def _order_to(self, host: str, order: Message) -> None:
        for agent in self._agents:
            if agent.host == host:
                agent.send(order)

    def _output(self, index: int, stream: str, lines: list[str]) -> None:
        if stream == "stderr":
            self._tails.add(index, lines)
        now = time.time()
        for line in lines:
            self._console.write(stream, self._prefixer.line(index, line, self._colors[stream], now))
        if self._files:
            try:
                self._files.write(index, stream, lines)
            except OSError as error:  # a full disk ends the logs, not the training
                self._say(f"no more log files: {error}")
                self._files = None

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(signum):
                    for agent in self._agents:
                        agent.send({"do": "signal", "signal": signum})
                case Kill(index, pid):
                    order = {"do": "kill", "id": index, "pid": pid, "signal": signal.SIGKILL}
                    self._order_to(self._supervisor.processes[index].spec.host, order)
                case Say(text):
                    self._say(text)

    def _say(self, text: str) -> None:
        self._console.write("stderr", f"pslite: {text}")


def _clean_up(pids: Iterable[int], directory: str | None) -> None:
    """What an agent that died here could not do: kill its process groups, remove the job's directory."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    if directory:
        shutil.rmtree(directory, ignore_errors=True)
