"""The servers of one process: its own, and those that it has taken over from processes that died."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pslite import Postoffice
from pslite.errors import ClosedError, PSError, StateLost

from .replica import Contents
from .service import Service

log = logging.getLogger("kvstore.server")


class Host:
    """Serves for a process until the job is over. Each server has a Postoffice, a thread and a store of its own.

    ``on_serving`` is called once the process's own server can be asked.
    """

    def __init__(self, office: Postoffice, on_serving: Callable[[], None] = lambda: None) -> None:
        self.office = office  # of the process's own server
        self._on_serving = on_serving
        self._adopted: list[tuple[threading.Thread, list[int]]] = []  # with the exit statuses; under the lock
        self._lock = threading.Lock()
        self._failure: BaseException | None = None  # what ended a server here before the job was over; under the lock

    @property
    def first_failure(self) -> BaseException | None:
        """What the job, or this process's part in it, ended by, as far as this process knows."""
        return self.office.first_failure or self._failure

    def serve(self) -> int:
        """Serve until the job is over, then leave; returns the exit status, the worst of all its servers."""
        statuses = [self._serve(self.office)]
        while True:
            with self._lock:
                if not self._adopted:
                    return max(statuses)
                thread, status = self._adopted.pop()
            thread.join()
            statuses += status or [1]

    def adopt(self, rank: int, contents: Contents) -> None:
        """Take the place of a server that died, with what it had. Returns at once; for any thread.

        The scheduler tells all others, who refuse the old process from then on.
        """
        office, status = self.office.beside(rank), list[int]()
        name = f"pslite-server-{rank}"
        thread = threading.Thread(target=lambda: status.append(self._serve(office, contents)), name=name, daemon=True)
        with self._lock:
            self._adopted.append((thread, status))
        thread.start()

    def _serve(self, office: Postoffice, contents: Contents | None = None) -> int:
        service: Service | None = None
        try:
            office.start()
            if office.role == "server":
                service = self._service(office, contents)
            if office is self.office:
                self._on_serving()
            office.wait_job_over()
            office.finalize(do_barrier=False)
        except (PSError, MemoryError) as error:
            if not isinstance(error, ClosedError):  # else this process has ended it itself
                log.error("%s", str(error) or repr(error))
                with self._lock:
                    self._failure = self._failure or error
            office.close()
            return 1
        finally:
            if service is not None:
                service.close()
        if office.released or office.job_clean:
            return 0
        log.error("%s", office.first_failure)
        return 1

    def _service(self, office: Postoffice, contents: Contents | None) -> Service:
        try:
            return Service(office, contents, self.adopt)
        except StateLost as error:  # nobody else can tell: the others would ask it for what it does not have
            office.leave("failed", error.reason)
            raise


def serve(office: Postoffice) -> int:
    """Serve until the job is over, then leave; returns the exit status of the process."""
    return Host(office).serve()
