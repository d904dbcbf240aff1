"""A server's shell for checkpoints of the whole job: takes snapshots, has them written, and tells server 0.

What concerns keys and messages is done on the leading thread, slice by slice; what touches files on a thread of its
own; and what server 0 decides is in ``coordinator.py``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from kvstore.checkpoint.directory import Checkpoint, Directory
from kvstore.checkpoint.job import Id, Saved, Stamp
from kvstore.commands import CHECKPOINT_APP
from pslite import SERVER_GROUP, PeerAway, PeerBack, Postoffice, SimpleApp, SimpleData, rank_of, role_of, server_id
from pslite.errors import CheckpointError, ConfigError, PeerError, ProtocolError, PSError

from .coordinator import Coordinator
from .partfile import PartFile
from .resuming import Resume
from .snapshot import Snapshot
from .store import New, Store
from .ticket import Ticket

log = logging.getLogger("kvstore.server")

SLICE = 8 * 1024 * 1024  # bytes that are taken at once: a few milliseconds, in which no request is served
END_WITHIN = 2.0  # seconds that a write may take to end when the process does
EVERYTHING = 2**31  # checkpoints to keep

Answer = Callable[[list[Ticket]], None]


class Saving:
    """One server's checkpoints. All fields belong to the leading thread; the files to ``pslite-checkpoint``."""

    def __init__(self, office: Postoffice, store: Store, answer: Answer) -> None:
        """``answer``: sends the answers of requests that are done.

        Raises CheckpointError if the directory cannot be used, ConfigError if it is another job's.
        """
        self._office = office
        self._store = store
        self._answer = answer
        self._config = office.config
        self._directory = Directory(self._config.checkpoint_dir)
        self._resume: Resume | None = None
        self._coordinator: Coordinator | None = None  # of server 0
        self._id: Id | None = None  # of what is being written here
        self._snapshot: Snapshot | None = None
        self._warned = False  # that one was not written; the next that is ends it
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        try:
            if office.rank == 0:
                self._open()
            self._app = SimpleApp(CHECKPOINT_APP, 0, office, self._on_request)
            if office.rank != 0 and self._config.resume:
                [id] = self._app.wait(self._app.request(0, ["resumed", None], server_id(0)))
                if id is not None:
                    self._open_again(Id(*id))
        except BaseException:
            self._directory.close()
            raise
        self._file = PartFile(self._directory, self._config.job, office.rank, office.num_servers)
        office.on_peer_ended(self._on_peer_ended)
        office.on_peer_moved(self._on_peer_moved)
        if office.rank == 0 and self._config.checkpoint_every:
            office.soon(self._tick, self._config.checkpoint_every)

    @property
    def resumes(self) -> bool:
        """Whether there is a checkpoint that keys become what they were in."""
        return self._resume is not None

    # -- the start ----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Server 0 decides for all what the job goes on from."""
        self._directory.lock()
        last = self._directory.last()
        if self._config.resume:
            found = self._directory.newest()
            if found is None:
                log.warning("there is no checkpoint in %s: the job starts from the beginning", self._directory.path)
            else:
                self._begin_from(found)
        elif self._directory.ids() and not self._config.restarts:
            allowed = "it has checkpoints: give --resume to go on from the newest, or another directory"
            raise ConfigError(name="PSLITE_CHECKPOINT_DIR", value=self._directory.path, allowed=allowed)
        self._directory.prune(EVERYTHING, Id(last.epoch + 1, 0))
        elements = 0 if self._resume is None else self._resume.elements
        self._coordinator = Coordinator(self._office.num_servers, last, self._config.timeout, elements)

    def _open_again(self, id: Id) -> None:
        try:
            self._begin_from(self._directory.open(id))
        except CheckpointError:
            if not self._config.restarts:
                raise
            log.info("checkpoint %s is not there any more: all keys were back when a later one was written", id)

    def _begin_from(self, checkpoint: Checkpoint) -> None:
        try:
            self._resume = resume = Resume(checkpoint)
        except PSError:  # an optimizer that is not registered here
            checkpoint.close()
            raise
        if self._config.restarts:  # the predecessor had set the rule, and fetched the keys that are here
            return
        self._store.settings.resumed = resume.rule
        log.warning("the job goes on from checkpoint %s in %s", resume.id, self._directory.path)

    def init(self, token: Any, rank: int, new: dict[int, New]) -> list[Ticket]:
        """``Store.init``; keys that are in the checkpoint become what they were."""
        if self._resume is None:
            return self._store.init(token, rank, new)
        try:
            units = self._resume.units(new)
        except PSError as error:
            return [Ticket(token, rank, error=error)]
        return self._store.init(token, rank, new, units, self._resume.rule)

    # -- what is asked, and told --------------------------------------------------------------------------------------

    def _on_request(self, data: SimpleData, app: SimpleApp) -> None:
        what, value = data.body
        if role_of(data.sender) == "worker" and what == "checkpoint" and self._coordinator is not None:
            self._coordinator.ask(Ticket(data, rank_of(data.sender)))
        elif role_of(data.sender) == "worker" and what == "stats" and self._coordinator is not None:
            app.response(data, self._stats(self._coordinator))
        elif role_of(data.sender) == "server":
            app.response(data, self._on_server(rank_of(data.sender), what, value))
        else:
            raise ProtocolError(f"{what!r:.40} is nothing that {data.sender} can ask here")
        self._decide()

    def _on_server(self, sender: int, what: str, value: Any) -> Any:
        if what == "resumed":
            return None if self._resume is None else list(self._resume.id)
        id = Id(*value[0])
        if what == "begin" and sender == 0:
            self._id, self._snapshot = id, Snapshot(self._store)
            self._do(id, partial(self._file.begin, id, self._snapshot.settings), self._next)
        elif what == "drop" and sender == 0:
            self._id = None if self._id == id else self._id
            self._do(id, partial(self._file.drop, id), None)
        elif what == "part" and self._coordinator is not None:
            stamps = self._coordinator.on_part(sender, id, Stamp(*value[1]), value[2])
            if stamps is not None:
                self._do(id, partial(self._file.complete, id, stamps, self._config.checkpoint_keep), self._completed)
        elif what == "failed" and self._coordinator is not None:
            self._fail(id, PSError.from_wire(value[1]))
        else:
            raise ProtocolError(f"{what!r:.40} is nothing that server {sender} can tell here")
        return None

    def _stats(self, coordinator: Coordinator) -> dict[str, Any]:
        resumed = None if self._resume is None else str(self._resume.id)
        return {
            "written": coordinator.written,
            "failed": coordinator.failed,
            "last": coordinator.path,
            "error": coordinator.error,
            "resumed_from": resumed,
        }

    def missing(self, message: Any) -> list[str]:
        """Who a worker's request waits for."""
        if self._coordinator is None:
            return []
        return self._coordinator.missing(lambda token: token.message is message)

    # -- server 0 -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """It is time for a checkpoint."""
        assert self._coordinator is not None and self._config.checkpoint_every is not None
        self._coordinator.ask()
        self._decide()
        self._office.soon(self._tick, self._config.checkpoint_every)

    def _decide(self) -> None:
        """Carry out what the coordinator has decided."""
        if self._coordinator is None:
            return
        id = self._coordinator.begin(time.monotonic())
        if id is not None:
            self._app.request(0, ["begin", [id]], SERVER_GROUP)
        done, self._coordinator.done = self._coordinator.done, []
        for ticket in done:
            if ticket.error is None:
                self._app.response(ticket.token, ticket.body)
            else:
                self._app.error(ticket.token, ticket.error)

    def _completed(self, id: Id, path: str) -> None:
        assert self._coordinator is not None
        self._coordinator.complete(id, path)
        self._warned = False
        log.info("checkpoint %s is written", path)
        self._decide()

    def _fail(self, id: Id, error: PSError, of_files: bool = False) -> None:
        """A checkpoint cannot be written: the servers remove their parts, and training goes on."""
        if self._coordinator is None:
            self._app.request(0, ["failed", [id, error.to_wire()]], server_id(0))
        elif self._coordinator.fail(id, error, of_files):
            self._app.request(0, ["drop", [id]], SERVER_GROUP)
            level, self._warned = logging.INFO if self._warned else logging.WARNING, True
            log.log(level, "no checkpoint was written, training goes on: %s", error)
            self._decide()

    def _on_peer_ended(self, node: int, error: PeerError) -> None:
        if role_of(node) == "server" and self._coordinator is not None:
            self._coordinator.on_server_ended(error)
            self._decide()

    def _on_peer_moved(self, event: PeerAway | PeerBack) -> None:
        """A server died: its successor knows nothing of the part that it was to write."""
        if role_of(event.node) == "server" and self._id is not None and isinstance(event, PeerAway):
            self._fail(self._id, event.error)

    # -- a part -------------------------------------------------------------------------------------------------------

    def _next(self, id: Id, _: Any) -> None:
        """Take the next keys; in the end tell server 0."""
        if id != self._id or self._snapshot is None:
            return  # it was given up
        try:
            taken: list[Saved] = self._snapshot.take(SLICE)
            self._answer([])  # bundles may have ended, and bursts are to be told
        except (PSError, MemoryError) as error:
            self._failed(id, error)
            return
        if taken:
            self._do(id, partial(self._file.add, taken), self._next)
        else:
            self._snapshot = None
            self._do(id, self._file.finish, self._finished)

    def _finished(self, id: Id, stamp: Stamp) -> None:
        fetched = 0 if self._resume is None else self._resume.fetched(self._store.specs())
        self._app.request(0, ["part", [id, [stamp.length, stamp.checksum], fetched]], server_id(0))

    def _failed(self, id: Id, error: Exception) -> None:
        self._snapshot = None
        if not isinstance(error, PSError):
            reason = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
            reason = f"part {self._office.rank} cannot be written: {reason}"
            error = CheckpointError(path=self._directory.path, reason=reason)
        self._fail(id, error, of_files=True)

    # -- the thread of files ------------------------------------------------------------------------------------------

    def _do(self, id: Id, job: Callable[[], Any], then: Callable[[Id, Any], None] | None) -> None:
        """Run a job there, and ``then`` with its result here; its failure is that of the checkpoint."""

        def run() -> None:
            try:
                result = job()
            except Exception as error:  # whatever it is: a thread that ends would leave all later checkpoints unwritten
                self._office.later(partial(self._failed, id, error))
            else:
                if then is not None:
                    self._office.later(partial(then, id, result))

        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pslite-checkpoint", daemon=True)
            self._thread.start()
        self._jobs.put(run)

    def _run(self) -> None:
        for job in iter(self._jobs.get, None):
            job()
        self._file.close()
        self._directory.close()

    def close(self) -> None:
        """The job is over: what is not complete will not be."""
        if self._thread is None:
            self._directory.close()
        else:
            self._jobs.put(None)
            self._thread.join(END_WITHIN)
        if self._resume is not None:
            self._resume.close()


def open_saving(office: Postoffice, store: Store, answer: Answer) -> Saving | None:
    """The checkpoints of a job that has a directory for them; else who asks for one is told how to."""
    if office.config.checkpoint_dir:
        return Saving(office, store, answer)
    SimpleApp(CHECKPOINT_APP, 0, office, _refuse)
    return None


def _refuse(data: SimpleData, app: SimpleApp) -> None:
    allowed = "start the job with --checkpoint-dir DIR"
    raise ConfigError(name="PSLITE_CHECKPOINT_DIR", value="not set on the servers", allowed=allowed)
