"""Flow: which message leaves next while there is no room for all of them.

A window bounds the bytes that are under way to a peer. What finds no room waits, and leaves by priority, larger first
(P3: Jayarajan et al., MLSys'19); of equal priorities the earlier call goes first. These rules bound the reordering:

- Messages about one key keep their order: one that waits has at least the priority of what comes after it, and so on
  down to the first (priority inheritance: Sha, Rajkumar, Lehoczky, IEEE ToC 1990).
- A message that is about no keys is a fence: it leaves after all that came before it, and before all that come later.
- A small message needs no room, but waits for its turn like the others.
- A pull takes its turn right behind the push of its keys: it costs nothing, its answer travels the other way while the
  rest is on its way, and the server answers what it has just summed.

No I/O here, and no time: what may leave depends on the order of calls only.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .wire import Flag, Kind, Message, Op

WINDOW = 4 * 1024 * 1024  # bytes under way from which on nothing follows: 3 ms at 10 Gbit/s, or two larger messages
SAY_AFTER = WINDOW // 2  # bytes that came in, after which the receiver says so; less would stop a sender that waits
MANY_KEYS = 256  # in a message, from which on it costs more than it gains to see what may overtake it
SMALL = 16 * 1024  # bytes below which a message costs its handling, not its size

Item = TypeVar("Item")


def cost(message: Message) -> int:
    """The bytes that a message takes of a window, sent whole."""
    if message.leases:  # it came without most of its bytes
        return 0
    nbytes = 0
    for array in message.arrays:
        nbytes += array.nbytes
    return nbytes if nbytes >= SMALL else 0


@dataclass(slots=True, eq=False)
class Waiting(Generic[Item]):
    """A message that waits for room, and what leaves with it."""

    item: Item | None  # None: it has left
    cost: int
    keys: Iterable[int]
    epoch: int  # how many fences came before
    priority: int  # its own, or the largest of those that must stay behind it
    turn: int  # among those of its priority: the order of itself, or of whom it has the priority from, or goes behind
    order: int
    ahead: list[Waiting[Item]]  # those that it must stay behind


class Window(Generic[Item]):
    """The messages to one peer that are under way, and those that wait for room. Used under the postoffice's lock.

    ``weigh``: the bytes that a message takes; none for arrays that the peer reads where they are.
    """

    def __init__(self, weigh: Callable[[Message], int] = cost) -> None:
        self._weigh = weigh
        self.under_way: dict[int, int] = {}  # bytes by sequence number; of small messages nothing is noted
        self.used = 0  # their sum
        self._waiting: dict[int, Waiting[Item]] = {}  # by order of calls
        # Epoch, -priority, turn, order; outdated entries too.
        self._heap: list[tuple[int, int, int, int, Waiting[Item]]] = []
        self._last: dict[int, Waiting[Item]] = {}  # by key: the last one of this epoch that is about it
        self._calls = 0
        self._epoch = 0

    def admits(self, message: Message) -> bool:
        """Whether a new message may leave at once: nothing waits, and there is room."""
        return not self._waiting and (self._has_room() or not self._weigh(message))

    def _has_room(self) -> bool:
        """Two may always be under way: else a link would run dry after each message as large as the window."""
        return self.used < WINDOW or len(self.under_way) < 2

    def wait(self, message: Message, item: Item, priority: int | None = None) -> None:
        """Put a message behind those that wait; ``pop`` gives back ``item``. ``priority``: in place of its own."""
        keys = _keys(message)
        if keys is None:
            self._begin_epoch()
        ahead = [waiting for waiting in {*map(self._last.get, keys or ())} if waiting is not None]
        priority, order = message.priority if priority is None else priority, self._calls
        self._calls += 1
        turn = order
        # Behind what is less urgent it stays in line with all that inherit its priority.
        if keys is not None and _only_pulls(message) and all(w.priority >= priority for w in ahead):
            turn = max((w.turn for w in ahead), default=-1)
        new = Waiting(item, self._weigh(message), keys or (), self._epoch, priority, turn, order, ahead)
        self._waiting[order] = new
        heapq.heappush(self._heap, (new.epoch, -priority, turn, order, new))
        if keys is None:
            self._begin_epoch()
        self._last.update(dict.fromkeys(new.keys, new))
        self._raise(ahead, priority, order)

    def _begin_epoch(self) -> None:
        self._epoch += 1
        self._last.clear()  # the fence keeps them apart

    def _raise(self, ahead: list[Waiting[Item]], priority: int, order: int) -> None:
        """Let those that must leave first inherit a priority, and leave right before the one that they have it from."""
        raised = list(ahead)
        while raised:
            waiting = raised.pop()
            if waiting.item is not None and waiting.priority < priority:
                waiting.priority, waiting.turn = priority, order
                heapq.heappush(self._heap, (waiting.epoch, -priority, order, waiting.order, waiting))
                raised += waiting.ahead

    def pop(self, room: bool = True) -> Item | None:
        """The next one to leave, or None; without ``room`` it need not fit."""
        while self._heap:
            first = self._heap[0][-1]
            if room and first.item is not None and first.cost and not self._has_room():
                return None
            heapq.heappop(self._heap)
            if first.item is not None:  # else it has left with its higher, inherited priority
                return self._take(first)
        return None

    def _take(self, first: Waiting[Item]) -> Item | None:
        item, first.item, first.ahead = first.item, None, []
        del self._waiting[first.order]
        for key in first.keys:
            if self._last.get(key) is first:
                del self._last[key]
        return item

    def clear(self) -> list[Item]:
        """Take out all that wait, in the order of their calls, and forget what is under way."""
        items = self.waiting()
        self.under_way, self.used = {}, 0
        self._waiting, self._heap, self._last = {}, [], {}
        return items

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def waiting(self) -> list[Item]:
        """All that wait, in the order of their calls."""
        return [w.item for w in self._waiting.values() if w.item is not None]

    # -- what is under way --------------------------------------------------------------------------------------------

    def left(self, message: Message) -> None:
        """This message, which has its number now, leaves."""
        if cost(message) and (nbytes := self._weigh(message)):
            self.under_way[message.seq] = nbytes
            self.used += nbytes

    def arrived(self, seq: int) -> None:
        """The peer has this one."""
        self.used -= self.under_way.pop(seq, 0)

    def arrived_below(self, seq: int) -> None:
        """The peer has all before this one, of messages that leave in the order of their numbers."""
        while self.under_way and (first := next(iter(self.under_way))) < seq:
            self.arrived(first)


_FENCE = Message(Kind.REQUEST)  # it is about no keys


class Arrivals(Generic[Item]):
    """What came and is not worked on yet: the more urgent first, by the rules for what leaves.

    Of one priority pulls go first, for they cost nothing and their worker can go on; each stays right behind the pushes
    of its keys. Used under the postoffice's lock. While all are equally urgent they are a line, which costs nothing.
    """

    def __init__(self) -> None:
        self._line: deque[tuple[Item, Message]] = deque()
        self._urgency: int | None = None  # of all messages in the line; None if there are only fences
        self._window: Window[Item] | None = None  # in place of the line, when they differ
        self.count = 0  # how many there are; an attribute, for it is asked for several times a message

    def add(self, item: Item, message: Message = _FENCE) -> None:
        """Put an item behind what must come before it; without a message that is all there is."""
        if message.op != Op.DATA or not message.arrays or message.arrays[0].size > MANY_KEYS:
            message = _FENCE
        self.count += 1
        urgency = 2 * message.priority + _only_pulls(message)
        if self._window is None and (message is _FENCE or self._urgency in (None, urgency)):
            self._urgency = self._urgency if message is _FENCE else urgency
            self._line.append((item, message))
            return
        if self._window is None:
            self._window = Window()
            for before, its in self._line:
                self._window.wait(its, before, self._urgency)
            self._line.clear()
        self._window.wait(message, item, urgency)

    def pop(self) -> Item:
        """The next one; there must be one."""
        if self._window is None:
            item: Item | None = self._line.popleft()[0]
        else:
            item = self._window.pop(room=False)
        self.count -= 1
        if not self.count:
            self._window = self._urgency = None
        assert item is not None
        return item


def _only_pulls(message: Message) -> bool:
    return message.flags & (Flag.PUSH | Flag.PULL) == Flag.PULL


def _keys(message: Message) -> list[int] | None:
    """The keys that a message is about, as ``kv_pairs.pack`` writes them; None for any other message."""
    if message.op != Op.DATA or not message.arrays:
        return None
    keys: list[int] = message.arrays[0].ravel().tolist()
    return keys
