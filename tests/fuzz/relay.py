"""A scheduler or server that hands on what it is told and tells, and says other things in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from random import Random
from types import TracebackType

import zmq

from pslite import ids
from pslite.wire import Kind, Message, Op, decode, encode
from tests.cases.seed import SEED
from tests.system.jobs import free_port

from .messages import Frames

BATCH = 1000  # messages that are said at once to each peer
_QUESTION = 2**40  # the number of the first question, and more than any request of the job has
_LOOK_EVERY = 20  # ms

Nonsense = Callable[[Message, Random], Iterator[Frames]]


class Relay:
    """Between a process that listens and those who connect to it: each has a connection of its own, under its own name.

    ``nonsense``: what to say, given the last answer that went to a peer; it is said to the peers of one role.
    ``beside``: of a scheduler's, the server's: those who join hear that the server is there.
    """

    def __init__(self, nonsense: Nonsense, role: str, beside: Relay | None = None) -> None:
        self.port = free_port()
        self.honest = 0  # the port of who listens; set before somebody connects here
        self.left = 0  # messages to say to each peer; set by the test, counted down by the thread
        self._nonsense, self._role, self._beside = nonsense, f"/{role}/".encode(), beside
        # All below belongs to the thread.
        self._random = Random(SEED)
        self._backs: dict[bytes, zmq.Socket[bytes]] = {}  # by the name of who connects here
        self._names: dict[zmq.Socket[bytes], bytes] = {}
        self._last: dict[bytes, Message] = {}  # the last answer to each peer
        self._asked: dict[bytes, set[int]] = {}  # the numbers of requests that honestly went to each peer
        self._open: set[bytes] = set()  # peers that have not answered our question yet
        self._question = _QUESTION
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def say(self, count: int) -> None:
        """Begin to say so much to each peer."""
        self.left = count

    @property
    def done(self) -> bool:
        """Whether all was said, and read."""
        assert self._thread.is_alive()
        return self.left == 0

    def _run(self) -> None:
        with zmq.Context() as self._context, self._context.socket(zmq.ROUTER) as self._front:
            self._unbounded(self._front)
            self._front.bind(f"tcp://127.0.0.1:{self.port}")
            self._poller = zmq.Poller()
            self._poller.register(self._front, zmq.POLLIN)
            while not self._stop.is_set():
                for sock, _ in self._poller.poll(_LOOK_EVERY):
                    if sock is self._front:
                        name, *frames = sock.recv_multipart()
                        self._up(name, frames)
                    else:
                        self._down(self._names[sock], sock.recv_multipart())
                if self.left and not self._open:
                    self._speak()
            for back in self._backs.values():
                back.close()

    def _unbounded(self, sock: zmq.Socket[bytes]) -> None:
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            sock.setsockopt(option, 0)

    def _up(self, name: bytes, frames: Frames) -> None:
        """From a peer: all but the answers to what we said."""
        message = decode(frames)
        if message.kind == Kind.REPLY and message.seq >= _QUESTION:
            if message.seq == self._question:
                self._open.discard(name)
                self.left -= 0 if self._open else BATCH
        elif message.kind != Kind.REPLY or message.seq in self._asked.get(name, ()):
            self._back(name).send_multipart(frames)

    def _back(self, name: bytes) -> zmq.Socket[bytes]:
        if name not in self._backs:
            back = self._backs[name] = self._context.socket(zmq.DEALER)
            self._unbounded(back)
            back.setsockopt(zmq.IDENTITY, name)
            back.connect(f"tcp://127.0.0.1:{self.honest}")
            self._names[back] = name
            self._poller.register(back, zmq.POLLIN)
        return self._backs[name]

    def _down(self, name: bytes, frames: Frames) -> None:
        """To a peer: all, but servers may have other addresses."""
        message = decode(frames)
        if message.kind == Kind.REQUEST:
            self._asked.setdefault(name, set()).add(message.seq)
        elif message.kind == Kind.REPLY:
            self._last[name] = message
            if message.op == Op.JOIN and self._beside is not None:
                frames = self._beside.welcome(message)
        self._front.send_multipart([name, *frames])

    def welcome(self, message: Message) -> Frames:
        """A scheduler's welcome in which the server is here."""
        for entry in message.body["roster"]:
            if ids.role_of(entry[0]) == "server":
                [address] = entry[2]
                self.honest = int(address.rpartition(":")[2])
                entry[2] = [f"tcp://127.0.0.1:{self.port}"]
        return [bytes(frame) for frame in encode(message)]

    def _speak(self) -> None:
        """A batch to each peer, and a question: who has answered it has read all."""
        self._question += 1
        self._open = {name for name in self._last if self._role in name}
        for name in self._open:
            last = self._last[name]
            messages = self._nonsense(last, self._random)
            for _ in range(BATCH):
                self._front.send_multipart([name, *next(messages)])
            question = Message(Kind.REQUEST, last.job, last.sender, incarnation=1, seq=self._question, op=Op.BARRIER)
            self._front.send_multipart([name, *encode(question)])

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
