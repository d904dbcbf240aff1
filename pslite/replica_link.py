"""ReplicaLink: a server tells its backup, the next server, what has changed, and hears it of the server before it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from . import wire
from .delivery import error_of
from .errors import ProtocolError, PSError
from .ids import SERVER_GROUP, backup_of, name_of
from .postoffice import Postoffice
from .simple_app import answer_error
from .wire import Kind, Message, Op

Array = np.ndarray[Any, Any]


class ReplicaLink:
    """Changes are numbered by their sender, and come in their order, each once.

    ``take(arrays)`` runs for each change of the server before this one, ``told(number, error)`` when the backup has one
    of this server's, and all before it, or has refused it; a PeerError says that it is dead. Both run on the leading
    thread.
    """

    def __init__(
        self, app: int, office: Postoffice, take: Callable[[list[Array]], None],
        told: Callable[[int, PSError | None], None]
    ) -> None:  # fmt: skip
        self._app, self._office, self._take, self._told = app, office, take, told
        self.backup = backup_of(office.node, office.num_servers)
        servers = office.node_ids(SERVER_GROUP)
        self.primary = next(node for node in servers if backup_of(node, office.num_servers) == office.node)
        office.register(app, 0, self._accept)

    def tell(self, number: int, arrays: list[Array]) -> None:
        """Tell the backup a change; the arrays must not change until it is told."""
        message = Message(Kind.REQUEST, op=Op.REPLICATE, app=self._app, arrays=arrays)
        wire.check(message)
        self._office.request(self.backup, message, partial(self._on_reply, number))

    def _on_reply(self, number: int, reply: Message | PSError) -> None:
        """Runs under the postoffice's lock."""
        self._office.after(partial(self._told, number, error_of(reply)))

    def _accept(self, message: Message) -> None:
        try:
            if message.op != Op.REPLICATE or message.sender != self.primary:
                raise ProtocolError(f"{self._office.name} has no replica of {name_of(message.sender)}")
            self._take(message.arrays)
        except Exception as error:  # it may be because we have its sender's place by now
            answer_error(self._office, message, error, "the replica")
        else:
            self._office.answer(message, Message(Kind.REPLY))
