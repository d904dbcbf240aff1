"""The server's shell: carries requests from the KVServer into the store, and what it decides back out."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

import pslite
from kvstore.commands import CONTROL_APP, DATA_APP, INIT, USER_APP
from pslite import KVMeta, KVPairs, KVServer, Postoffice, SimpleApp, SimpleData
from pslite.errors import PeerError, ProtocolError, PSError

from .store import Store
from .ticket import Ticket

log = logging.getLogger("kvstore.server")


class Service:
    """One server process's store, served until the job is over. Runs on the postoffice's leading thread."""

    def __init__(self, office: Postoffice) -> None:
        self._office = office
        self.store = Store(office.num_workers)
        self._data = KVServer(DATA_APP, office)
        office.on_peer_ended(self._on_peer_ended)
        office.on_parked(lambda message: self.store.missing(lambda token: token.message is message))
        self._control = SimpleApp(CONTROL_APP, 0, office, self._on_control)
        self._user = SimpleApp(USER_APP, 0, office, self._on_user_command)
        self._data.set_handle(self._on_data)

    def _on_data(self, meta: KVMeta, pairs: KVPairs, server: KVServer) -> None:
        assert isinstance(pairs.vals, list)
        keys = pairs.keys.tolist()
        rank = pslite.rank_of(meta.sender)
        codes = pairs.codes or []
        if meta.cmd == INIT:
            names = _names(meta.meta, keys)
            self._finish(self.store.init(meta, rank, names, keys, [v.copy() for v in pairs.vals], codes))
            return
        if meta.replay:  # a pull: the answers of pushes have no arrays, and are kept by delivery
            self._finish(self.store.read(meta, rank, keys))
            return
        values, codes = (pairs.vals, codes) if meta.push else ([], [])
        self._finish(self.store.request(meta, rank, keys, values, codes, meta.pull))

    def _on_control(self, data: SimpleData, app: SimpleApp) -> None:
        what, value = data.body
        self._finish(self.store.agree(data, pslite.rank_of(data.sender), str(what), value))

    def _on_user_command(self, data: SimpleData, app: SimpleApp) -> None:
        log.info("command %s from %s", data.head, self._office.name_of(data.sender))
        app.response(data)

    def _on_peer_ended(self, node: int, error: PeerError) -> None:
        if pslite.role_of(node) == "worker":
            self._finish(self.store.on_peer_ended(pslite.rank_of(node), error))

    def _finish(self, tickets: list[Ticket]) -> None:
        """Answer the requests that are done."""
        for ticket in tickets:
            token = ticket.token
            if isinstance(token, SimpleData):
                self._control.response(token) if ticket.error is None else self._control.error(token, ticket.error)
            elif ticket.error is not None:
                self._data.error(token, ticket.error, ticket.what)
            elif ticket.pull:
                keys = token.message.arrays[0]
                versions = np.array(ticket.versions, np.uint64)
                self._data.response(token, KVPairs(keys, ticket.values, versions=versions, codes=ticket.codes))
            else:
                self._data.response(token)


def _names(meta: Any, keys: list[int]) -> list[tuple[int | str, bool]]:
    try:
        return [(meta[key][0], bool(meta[key][1])) for key in keys]
    except (TypeError, KeyError, IndexError) as error:
        raise ProtocolError(f"an init without the names of its keys: {error}") from error


def serve(office: Postoffice) -> int:
    """Serve until the job is over, then leave; returns the exit status of the process."""
    try:
        office.start()
        if office.role == "server":
            Service(office)
        office.wait_job_over()
        office.finalize(do_barrier=False)
    except PSError as error:
        log.error("%s", error)
        office.close()
        return 1
    if office.job_clean:
        return 0
    log.error("%s", office.first_failure)
    return 1
