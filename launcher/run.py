"""Runs a job: carries events and signals to the supervisor, its actions to the agents, and output to the console."""

from __future__ import annotations

import select
import signal
import time
from typing import Any

from . import local
from .console import Console
from .control import Control
from .error_record import ErrorRecord
from .link import AgentLink
from .logs import LogFiles, Prefixer, Tails
from .protocol import Message
from .report import final_report
from .scaling import change, moved_text
from .signals import SignalPipe
from .spec import JobSpec, ProcessSpec
from .supervise import Action, Kill, Say, Send, Supervisor

_PAUSE_AT = 1 << 18  # bytes of output the terminal has not taken: then agents, and in turn processes, wait


class Job:
    """One run of a JobSpec. Everything happens in the thread that calls ``run``."""

    def __init__(
        self,
        spec: JobSpec,
        job: str,
        *,
        grace: float,
        console: Console,
        colors: dict[str, bool],
        prefixer: Prefixer,
        files: LogFiles | None,
    ) -> None:
        self._spec, self._job, self._grace = spec, job, grace
        self._console, self._colors, self._prefixer, self._files = console, colors, prefixer, files
        self._tails = Tails(len(spec.processes))
        now = time.monotonic()
        self._supervisor = Supervisor(spec.processes, grace, now, spec.max_restarts, spec.shrinks, spec.replicas)
        self._agents: list[AgentLink] = []
        self._control: Control | None = None  # of an elastic job that runs
        self._ending = False  # the agents were told to end
        self._directories: dict[str, str] = {}  # by host: for cleaning up after an agent that died

    def run(self, signals: SignalPipe) -> int:
        """Start everything, wait for the end, report. Returns the exit status."""
        try:
            for notice in self._spec.notices:
                self._say(notice)
            self._open()
            while not self._supervisor.finished(time.monotonic()):
                self._turn(signals)
            self._end_orders()
            while self._agents:
                self._turn(signals)
        finally:
            self._end_orders()  # after an error of our own: this is what ends the processes
        for line in final_report(self._supervisor, self._tails, self._files):
            self._console.write("stderr", line)
        self._console.drain(signals.fileno())
        return self._supervisor.status()

    def _open(self) -> None:
        self._agents = local.open_agents()
        for agent in self._agents:
            mine = [
                {"id": index} | process.as_dict()
                for index, process in enumerate(self._spec.processes)
                if process.host == agent.host
            ]
            order = {"do": "start", "job": self._job, "transport": self._spec.transport, "keys": self._spec.keys}
            order |= {"grace": self._grace, "max_restarts": self._spec.max_restarts, "shrinks": self._spec.shrinks}
            order["replicas"] = self._spec.replicas
            order |= {"workers": self._spec.elastic.most if self._spec.elastic else 0, "processes": mine}
            agent.send(order)

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
        poller = select.poll()
        poller.register(signals, select.POLLIN)
        if blocked is not None:
            poller.register(blocked, select.POLLOUT)
        if self._control is not None:
            poller.register(self._control, select.POLLIN)
        # Once the job is being stopped, its ends matter more than the memory that its last words take.
        if self._console.pending < _PAUSE_AT or self._supervisor.cause is not None:
            for agent in self._agents:
                poller.register(agent, select.POLLIN)
        ready = {descriptor for descriptor, _ in poller.poll(self._timeout())}
        if signals.fileno() in ready:
            for signum in signals.read():
                self._act(self._supervisor.signalled(signum, time.monotonic()))
        if self._control is not None and self._control.fileno() in ready:
            self._control.serve(self._scale)
        for agent in list(self._agents):
            if agent.fileno() in ready:
                self._receive(agent)
        self._act(self._supervisor.tick(time.monotonic()))

    def _timeout(self) -> float | None:
        """Milliseconds, as poll() wants them, and rounded up so that the deadline has passed afterwards."""
        deadline = self._supervisor.deadline()
        return None if deadline is None or self._ending else max(0, deadline - time.monotonic()) * 1000 + 1

    def _receive(self, agent: AgentLink) -> None:
        events = agent.receive()
        for event in events or ():
            self._on_event(agent.host, event)
        if events is not None:
            return
        self._agents.remove(agent)
        if agent.close() == 0 and self._ending:
            return
        pids = [p.pid for p in self._supervisor.running() if p.spec.host == agent.host and p.pid is not None]
        local.clean_up(pids, self._directories.get(agent.host))
        if not self._ending:
            self._act(self._supervisor.agent_lost(agent.host, time.monotonic()))

    def _on_event(self, host: str, event: Message) -> None:
        now = time.monotonic()
        match event["event"]:
            case "opened":
                self._directories[host] = event["directory"]
                self._take_requests(event["directory"])
            case "started":
                self._supervisor.started(event["id"], event["pid"])
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

    def _take_requests(self, directory: str) -> None:
        if self._control is None and (self._spec.elastic is not None or self._spec.shards):
            self._control = Control(directory)
        if self._spec.elastic is not None:
            least, most = self._spec.elastic.least, self._spec.elastic.most
            self._say(f"{least} to {most} workers: pslite scale --job {directory} --workers N")
        if any(not process.starts for process in self._spec.processes):
            self._say(f"1 to {self._spec.shards} servers: pslite scale --job {directory} --servers N")

    def _scale(self, request: dict[str, Any]) -> str | None:
        """Carry out a request that came while the job runs; returns what to answer, None: ``_scaled`` does.

        Raises UsageError.
        """
        planned = change(self._spec, self._supervisor, request)
        if planned.servers is not None:
            self._order_to(self._spec.processes[0].host, {"do": "scale", "servers": planned.servers})
            return None
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
        self._order_to(spec.host, {"do": "add", "process": {"id": index} | spec.as_dict()})

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
