"""The place of one process of a job on Ray: its actor, the agent in that, and what Ray's restarts mean for both."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from launcher.protocol import PROTOCOL, Message, MessageReader, encode
from launcher.pulse import Pulse

_TURN = 0.05  # seconds between looks for an actor that is being started again
_AHEAD = 16  # pieces of events that an actor may be ahead of who reads them: from there on processes wait
_NOT_FOR_THE_LAUNCHER = ("hello", "placed", "beat")


class Unusable(Exception):
    """No process can run here; the text says why."""


class Seat:
    """Used by the one event loop of ``ray_agent`` only."""

    def __init__(self, actor: Any, restarts: int, silence: float, tell: Callable[[Message], Awaitable[None]]) -> None:
        self._actor, self._silence, self._tell = actor, silence, tell
        self._most = restarts  # of the actor and of the process, together
        self._restarts = 0
        self._order: Message | None = None  # to start the process; given again to each new agent
        self._process: Message = {}  # that of the order
        self._pid: int | None = None  # of the process that runs now
        self._over = False  # the process has ended, and will not be started again
        self._out = bytearray()  # orders that the actor has not been given yet
        self._wake = asyncio.Event()  # there are some, or no more will come
        self._closing = False
        self._pulse: Pulse | None = None  # of the agent, while there is one
        self._telling = False  # the launcher has not taken what this one said
        self._up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._up.add_done_callback(lambda up: up.exception())  # it need not be asked for
        self._life = ""  # of the actor: another one each time that Ray starts it
        self._log = ""  # where the agent's stderr is
        self._reason = ""  # why the actor was killed by us
        self.host = self.address = ""  # of the node
        self.tasks = [asyncio.create_task(self._live()), asyncio.create_task(self._write())]

    async def ready(self) -> None:
        """Wait until Ray has started the actor for the first time; raises Unusable."""
        await asyncio.shield(self._up)

    async def ended(self) -> None:
        """Wait until the agent has ended, after ``close``."""
        await asyncio.wait(self.tasks)

    # -- orders -------------------------------------------------------------------------------------------------------

    @property
    def id(self) -> int | None:
        """The number of its process, once that is known."""
        return self._process.get("id")

    @property
    def role(self) -> str | None:
        """That of its process, likewise."""
        return self._process.get("role")

    def start(self, order: Message) -> None:
        """Start the process, the only one of this order."""
        self._order, (self._process,) = order, order["processes"]
        self.send(order)

    def send(self, order: Message) -> None:
        """Give an order to the agent."""
        self._out += encode(order)
        self._wake.set()

    def beat(self, now: float) -> None:
        """To be called several times a second: show the agent that somebody is there, and look whether it is."""
        if self._pulse is None or self._closing:
            return
        if not self._out:
            self.send({"do": "beat"})
        if self._telling:
            self._pulse.heard(now)
        if self._pulse.is_lost(now):
            self._pulse = None
            self._kill(f"nothing was heard of it for {self._silence:g} s")

    def stop_restarting(self) -> None:
        """The job is being ended."""
        self._most = 0

    def close(self) -> None:
        """No more orders: the agent is to end everything, and itself."""
        self._most, self._closing = 0, True
        self._wake.set()

    async def _write(self) -> None:
        """Pass orders on, one call after the other, so that they arrive in order."""
        group = {"concurrency_group": "orders"}
        while self._out or not self._closing:
            await self._wake.wait()
            self._wake.clear()
            data = bytes(self._out)
            self._out.clear()
            with contextlib.suppress(RayError):  # which shows where events are read
                await self._actor.order.options(**group).remote(data)
        with contextlib.suppress(RayError):
            await self._actor.close.options(**group).remote()

    # -- lives of the actor -------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        while True:
            self._reason = ""
            try:
                await self._begin()
                await self._listen()
                if self._closing:
                    return
                await self._bury()
            except ActorUnavailableError:  # Ray starts it again
                pass
            except RayError as error:
                self._kill(self._reason or _gist(str(error)))
            self._pulse = None
            if not await self._goes_on(self._reason):
                return

    async def _begin(self) -> None:
        """Wait until Ray has started the actor, with a new agent in it."""
        while True:
            with contextlib.suppress(ActorUnavailableError):
                place = await self._actor.place.options(max_task_retries=-1).remote()
                if place["life"] != self._life:
                    break
            await asyncio.sleep(_TURN)  # it is being started, or about to die
        self._life, self.host, self.address, self._log = (place[key] for key in ("life", "host", "address", "log"))
        self._out.clear()
        self._pulse = Pulse(self._silence, time.monotonic())
        if self._order is None:
            return
        if self._most:
            self.send(self._order | {"processes": [self._process | {"restarts": self._restarts}]})
        else:  # the job is being ended meanwhile
            await self._give_up()

    async def _listen(self) -> None:
        """Pass on what the agent says, until it ends."""
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": _AHEAD}
        reader = MessageReader()
        async for piece in self._actor.events.options(**options).remote():
            events = reader.feed(await piece)
            if self._pulse is not None:
                self._pulse.heard(time.monotonic())
            for event in events:
                await self._on_event(event)

    async def _on_event(self, event: Message) -> None:
        match event["event"]:
            case "hello":
                self._greeted(event["protocol"])
            case "started":
                self._pid = event["pid"]
            case "died":
                self._restarts += 1
                self._pid = None
            case "exited" | "failed":
                self._over, self._pid = True, None
        if event["event"] not in _NOT_FOR_THE_LAUNCHER:
            await self._say(event | {"host": self.host})

    def _greeted(self, protocol: int) -> None:
        if self._up.done():
            return
        if protocol == PROTOCOL:
            self._up.set_result(None)
            return
        theirs = f"the agent on {self.host} speaks protocol {protocol}, this launcher {PROTOCOL}"
        self._up.set_exception(Unusable(f"{theirs}: install the same version of pslite on both"))

    async def _bury(self) -> None:
        """The agent has died alone: end what it ran, and have Ray start the actor again."""
        if self._pid is not None:
            await self._actor.kill_group.remote(self._pid)
        self._kill(f"the agent in it ended, see {self._log} there")

    def _kill(self, reason: str) -> None:
        """Ray starts it again, if it may."""
        self._reason = reason
        ray.kill(self._actor, no_restart=False)

    async def _goes_on(self, reason: str) -> bool:
        """The actor is gone, and with it the process; whether Ray starts both again."""
        if not self._up.done():
            self._up.set_exception(Unusable(f"no agent could be started in an actor: {reason}"))
        if self._over or self._order is None:
            return False
        label = self._process["role"] + (f" {self._process['rank']}" if self._process["role"] != "scheduler" else "")
        because = f": {reason}" if reason else ""
        await self._say({"event": "notice", "text": f"the actor of {label} on {self.host} died{because}"})
        self._pid = None
        if self._restarts < self._most:
            self._restarts += 1
            await self._say({"event": "died", "id": self.id, "code": -signal.SIGKILL})
            return True
        await self._give_up()
        return False

    async def _give_up(self) -> None:
        """The process has died, and is not started again."""
        self._over = True
        ray.kill(self._actor)
        await self._say({"event": "exited", "id": self.id, "code": -signal.SIGKILL})

    async def _say(self, event: Message) -> None:
        self._telling = True
        await self._tell(event)
        self._telling = False


def _gist(text: str) -> str:
    """What one of Ray's long errors is about: the first sentence of its last line."""
    line = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")
    return line.split(". ")[0]
