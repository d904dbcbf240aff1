"""The agent of the host ``ray``, a driver of the cluster: it has an actor for each process of the job.

It runs as a child of the launcher, where a job by ssh has ``ssh``. In each actor is an ordinary agent with one process,
to which it passes orders on, and from which events come. Ray ends all actors when this process ends, however it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from launcher.protocol import BEAT, PROTOCOL, Message, MessageReader, encode
from launcher.pulse import Pulse
from launcher.survey import reach

from . import ray_bridge
from .ray_seat import Seat, Unusable
from .ray_split import keys_of, summary

_CHUNK = 1 << 18
_PATIENCE = 2.0  # seconds until the user is told that the cluster has no room
_ENDING = 5.0  # seconds for all agents to end everything, which takes them four
_ROOM = {"CPU": 1}  # of each process


class RayAgent:
    """Orders come in, events go out; everything happens in one event loop."""

    def __init__(self, plan: Mapping[str, Any], events: asyncio.StreamWriter) -> None:
        self._plan, self._events = plan, events
        self._turn = asyncio.Lock()  # of who waits for the launcher to take an event
        self._added: set[asyncio.Task[None]] = set()  # seats that are being made for processes that join
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # an error of our own
        self._group: Any = None  # the placement group
        self._seats: list[Seat] = []  # in the order of the job's processes: the scheduler's first
        self._started: Message = {}  # the order to start
        self._looks: list[Message] = []  # what the agents have found out, for --check
        self._pulse = Pulse(plan["silence"], time.monotonic())  # of the launcher

    async def run(self, orders: asyncio.StreamReader) -> None:
        """Serve until the launcher is gone, or does not want us any more."""
        await self._tell({"event": "hello", "protocol": PROTOCOL, "came_to": None, "came_from": None})
        queue: asyncio.Queue[Message] = asyncio.Queue()
        tasks = [asyncio.create_task(work) for work in (self._read(orders, queue), self._obey_all(queue), self._beat())]
        done, _ = await asyncio.wait([*tasks, self._broken], return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, *self._added):
            task.cancel()
        await self._end()
        for work in done:
            work.result()

    # -- orders -------------------------------------------------------------------------------------------------------

    async def _read(self, orders: asyncio.StreamReader, queue: asyncio.Queue[Message]) -> None:
        reader = MessageReader()
        while data := await orders.read(_CHUNK):
            self._pulse.heard(time.monotonic())
            for order in reader.feed(data):
                if order["do"] == "pause":
                    self._pulse.pause()
                queue.put_nowait(order)

    async def _obey_all(self, queue: asyncio.Queue[Message]) -> None:
        while True:
            await self._obey(await queue.get())

    async def _obey(self, order: Message) -> None:
        match order["do"]:
            case "open":
                await self._open(order)
            case "start":
                self._start(order)
            case "add":
                self._added.add(asyncio.create_task(self._add(order)))  # others do not wait for its room
            case "signal":
                for seat in self._seats:
                    seat.stop_restarting()
                    seat.send(order)
            case "kill":
                for seat in self._seats:
                    if seat.id == order["id"]:
                        seat.send(order)
            case "scale":
                error = "servers move on one host only; on Ray each has an actor of its own"
                await self._tell({"event": "scaled", "servers": 0, "moved": [], "error": error})
            case "look":
                await self._take_seats()
                if await self._ready():
                    for seat in self._seats:
                        seat.send(order)

    async def _open(self, order: Message) -> None:
        """Have the scheduler's actor listen, once all are there."""
        await self._take_seats()
        if await self._ready():
            first = self._seats[0]
            address = None if order["interface"] else first.address
            first.send(order | {"address": order["address"] or address})

    async def _ready(self) -> bool:
        """Whether all actors have an agent, once that is known."""
        try:
            for seat in self._seats:
                await seat.ready()
        except Unusable as error:
            await self._tell({"event": "refused", "error": str(error)})
            return False
        return True

    async def _take_seats(self) -> None:
        """Have all actors made, when there is room for all."""
        if self._seats:
            return
        await self._take_places(len(self._plan["restarts"]))
        for number, restarts in enumerate(self._plan["restarts"]):
            self._seat(restarts, scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, number))

    async def _take_places(self, count: int) -> None:
        self._group = placement_group([_ROOM] * count, strategy="SPREAD")
        told = False
        while not await asyncio.to_thread(self._group.wait, _PATIENCE):
            if not told:
                told = True
                free, there = ray.available_resources().get("CPU", 0), ray.cluster_resources().get("CPU", 0)
                room = f"the Ray cluster has {there:g}, {free:g} of them free"
                text = f"{count} processes need {count} CPUs; {room}: waiting"
                await self._tell({"event": "notice", "text": text})

    def _seat(self, restarts: int, **options: Any) -> Seat:
        make = ray.remote(concurrency_groups={"orders": 1}, max_restarts=restarts, num_cpus=_ROOM["CPU"])
        actor = make(ray_bridge.Bridge).options(**options).remote(self._plan["command"])
        seat = Seat(actor, restarts, self._plan["silence"], self._said)
        self._seats.append(seat)
        for task in seat.tasks:
            task.add_done_callback(self._look_at)
        return seat

    def _look_at(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._broken.done():
            self._broken.set_exception(error)

    def _start(self, order: Message) -> None:
        self._started = order
        for seat, process in zip(self._seats, order["processes"], strict=True):
            self._start_one(seat, process, keys_of(process, order))

    def _start_one(self, seat: Seat, process: Message, keys: Mapping[str, str]) -> None:
        if process["role"] == "worker":
            beside = sum(other.role == "worker" and other.address == seat.address for other in self._seats)
            process = process | {"env": process["env"] | {"LOCAL_RANK": str(beside)}}
        seat.start(self._started | {"processes": [process], "keys": keys})

    async def _add(self, order: Message) -> None:
        """One more process for the running job: the cluster has room for it, or gets some."""
        seat, process = self._seat(self._plan["restarts"][-1]), order["process"]
        try:
            await seat.ready()
        except Unusable as error:
            await self._tell({"event": "failed", "id": process["id"], "code": 126, "error": str(error)})
        else:
            self._start_one(seat, process, order["keys"])

    # -- beats, events, the end ---------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Show both ends that there is a way, until the launcher is silent."""
        while not self._pulse.is_lost(time.monotonic()):
            for seat in self._seats:
                seat.beat(time.monotonic())
            if not self._events.transport.get_write_buffer_size():  # else the launcher is not reading for now
                self._events.write(encode({"event": "beat"}))
            await asyncio.sleep(BEAT)

    async def _said(self, event: Message) -> None:
        """An agent has something to say. What they have found out is told as one."""
        if event["event"] == "looked":
            self._looks.append(event)
            if len(self._looks) < len(self._seats):
                return
            event = summary(self._looks)
        await self._tell(event)

    async def _tell(self, event: Message) -> None:
        """Returns when the launcher takes more."""
        async with self._turn:
            self._events.write(encode(event))
            await self._events.drain()

    async def _end(self) -> None:
        for seat in self._seats:
            seat.close()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(seat.ended() for seat in self._seats)), _ENDING)
        if self._group is not None:
            remove_placement_group(self._group)


async def _serve(plan: Mapping[str, Any], orders: int, events: int) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(orders, "rb", buffering=0))
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    transport, _ = await loop.connect_write_pipe(lambda: protocol, os.fdopen(events, "wb", buffering=0))
    await RayAgent(plan, asyncio.StreamWriter(transport, protocol, None, loop)).run(reader)


def _connect(address: str) -> None:
    """Become a driver of the cluster there, or of the one that runs on this host; exits if that cannot be."""
    host, colon, port = address.rpartition(":")
    problem = reach(host, int(port)) if colon and port.isdigit() else ""  # Ray itself would try for a minute
    try:
        if not problem:
            ray.init(address="auto", log_to_driver=False, configure_logging=False)
            return
    except (ConnectionError, RuntimeError, ValueError) as error:
        problem = " ".join(str(error).split())
    where = f"RAY_ADDRESS={address}: " if address else ""
    sys.exit(f"no Ray cluster: {where}{problem}\nstart one by ray start --head, or give its address as RAY_ADDRESS")


def main(text: str) -> None:
    """Run the agent on stdin and stdout; ``text``: as ``ray`` gives it."""
    events = os.dup(sys.stdout.fileno())
    # Ray prints there what happens to its workers, which is the launcher's to tell.
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    _connect(os.environ.get("RAY_ADDRESS", ""))
    ray.cloudpickle.register_pickle_by_value(ray_bridge)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        asyncio.run(_serve(json.loads(text), os.dup(sys.stdin.fileno()), events))
    ray.shutdown()
