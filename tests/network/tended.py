"""Jobs on hosts of their own whose processes are started again, as the launcher's agent does it on one host."""

from __future__ import annotations

import contextlib
import select
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kvstore.chaos.findings import Findings
from launcher.keeper import Keeper
from launcher.lost import LostList
from launcher.orders import Orders
from tests.harness import wait_until
from tests.system.jobs import LONGEST, Process

from .hosts import Place
from .jobs import LanesJob

_LOOK_EVERY = 20  # milliseconds
_RESTARTS = 50  # of a process: more than any test needs


@dataclass
class Seat:
    """A rank, what starts its process, and the one that has it now. ``host`` may be changed by the test at any time;
    all else by the thread that tends the job."""

    role: str
    rank: int
    host: Place
    command: Sequence[str]
    env: dict[str, str]
    keeper: Keeper | None
    restarts: int = -1
    process: Process | None = None
    orders: Orders | None = None  # to a server's process


class TendedJob(LanesJob):
    """A job of lanes whose processes are started again when they have failed; what servers hold is kept.

    ``kills``: whom the scheduler gives up is killed, as on a host whose agent hears of it.
    """

    def __init__(
        self, directory: Path, scheduler: Place, servers: Sequence[Place], workers: Sequence[Place], kills: bool = True
    ) -> None:
        super().__init__(directory, scheduler, servers, workers)
        self._job_dir = directory / "job"
        self._job_dir.mkdir(mode=0o700)
        self.seats: list[Seat] = []
        self._lost = LostList(self._job_dir) if kills else None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tend, name="tending")

    def start_one(self, role: str, rank: int, host: Place, command: Sequence[str], env: dict[str, str]) -> None:
        keeper = Keeper(lambda text: None) if role == "server" else None
        env |= {"PSLITE_JOB_DIR": str(self._job_dir), "PSLITE_TRANSPORT": "tcp", "PSLITE_MAX_RESTARTS": str(_RESTARTS)}
        self.seats.append(Seat(role, rank, host, command, env, keeper))
        self._seat(self.seats[-1])

    def begin(self, type: str, sizes: Sequence[int], addresses: dict[Place, str] | None = None, **env: str) -> None:
        self._thread.start()
        super().begin(type, sizes, addresses, **env)

    def seat(self, role: str, rank: int = 0) -> Seat:
        """The seat of a rank."""
        return next(seat for seat in self.seats if (seat.role, seat.rank) == (role, rank))

    @property
    def restarts(self) -> int:
        """How often processes were started again."""
        return sum(seat.restarts for seat in self.seats)

    def ended(self) -> list[Process]:
        """None that is not started again."""
        return [process for process in super().ended() if process.status == 0]

    def end(self) -> Findings:
        self.ledger.stop = True
        wait_until(lambda: all(p.status == 0 for p in self.processes), LONGEST, f"the end of {self.processes}")
        return super().end()

    # -- the thread that tends ----------------------------------------------------------------------------------------

    def _tend(self) -> None:
        while not self._over.is_set():
            poll = select.poll()
            keepers = {k.fileno(): k for seat in self.seats if (k := seat.keeper) is not None and k.connected}
            for fd, keeper in keepers.items():
                poll.register(fd, select.POLLIN | (select.POLLOUT if keeper.wants_to_send else 0))
            for fd, _ in poll.poll(_LOOK_EVERY):
                keepers[fd].serve()
            for role, rank, pid in self._lost.news() if self._lost else []:
                process = self.seat(role, rank).process
                if process is not None and process.popen.pid == pid and process.status is None:
                    process.signal(signal.SIGKILL)
            for seat in self.seats:
                if seat.process is not None and seat.process.status not in (None, 0):
                    self._seat(seat)

    def _seat(self, seat: Seat) -> None:
        """Start a process on this seat, in the place of the one before."""
        before, seat.restarts = seat.process, seat.restarts + 1
        env = seat.env | {"DMLC_NODE_HOST": seat.host.address}
        if seat.restarts:
            env["PSLITE_RESTARTS"] = str(seat.restarts)
        command = seat.host.within(*seat.command)
        if seat.keeper is None:
            seat.process = self.start_command(seat.role, command, **env)
        else:
            self._close_orders(seat)
            seat.orders = Orders()
            with seat.keeper.connect() as connection, seat.orders.take_end() as end:
                seat.orders.adopt(seat.rank, seat.restarts, connection)
                env["PSLITE_AGENT_FD"] = str(end.fileno())
                seat.process = self.start_command(seat.role, command, [end.fileno()], **env)
        self.processes = [process for process in self.processes if process is not before]

    def _close_orders(self, seat: Seat) -> None:
        if seat.orders is not None:
            seat.orders.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        with contextlib.suppress(RuntimeError):  # it was not started
            self._thread.join()
        super().__exit__(kind, error, tb)
        for seat in self.seats:
            self._close_orders(seat)
            if seat.keeper is not None:
                seat.keeper.close()
