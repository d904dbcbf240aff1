"""Who may connect, and whose messages a connection may bring. A state machine without I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zmq.utils import z85

from pslite import ids
from pslite.wire import Kind, Message, Op

DOMAIN = b"pslite"  # of ZAP: without a domain some sockets would not ask at all
_REQUEST = (b"1.0", DOMAIN, b"CURVE")  # version, domain, mechanism
_KEY_BYTES = 32


class Guard:
    """Answers ZeroMQ's question about a new connection (ZAP, RFC 27), and checks each message against its answer.

    ``nodes``: the node that each public key (Z85) stands for. It may be replaced at any time: what comes then is
    checked by the new one, so a key that is no longer in it has no say, whatever connections it has.
    """

    def __init__(self, nodes: Mapping[bytes, int]) -> None:
        self.nodes = nodes
        self.refused = 0  # connections

    def answer(self, request: Sequence[bytes]) -> list[bytes]:
        """The reply to a request ``[version, id, domain, address, identity, mechanism, credentials...]``.

        Its user id is the key, so that what a message says of its sender can be compared with whose key that is.
        """
        number = request[1] if len(request) > 1 else b""
        key = b""
        if len(request) == 7 and (request[0], request[2], request[5]) == _REQUEST and len(request[6]) == _KEY_BYTES:
            key = z85.encode(request[6])
        known = key in self.nodes
        self.refused += not known
        status = [b"200", b"OK", key] if known else [b"400", b"this key is not in the roster of the job", b""]
        return [b"1.0", number, *status, b""]

    def problem(self, user: str, link: bytes, message: Message) -> str | None:
        """Why a message on an incoming connection is not its sender's; None if it is.

        ``user``: the key by which the connection was let in; ``link``: its routing id, ``.../role/incarnation``.
        """
        node = self.nodes.get(user.encode("ascii", "replace"))
        if node is None:
            return "its key is not in the roster any more"
        role = ids.role_of(node)
        place = f"/{role}/{message.incarnation:016x}".encode()
        if not link.endswith(place):
            return f"the key of {ids.name_of(node)} came with the routing id {link!r:.120}"
        if message.sender not in (0, node):
            return f"the key of {ids.name_of(node)} came with the sender {message.sender!r:.20}"
        if message.op == Op.JOIN and message.kind == Kind.REQUEST:
            body = message.body
            if not isinstance(body, list) or body[:2] != [role, ids.rank_of(node)]:
                return f"the key of {ids.name_of(node)} came with a wish to join as {body!r:.60}"
        return None


def of_peer(node: int, message: Message) -> str | None:
    """Why a message on a connection that we made to a node is not its sender's; the scheduler relays others' too."""
    if node in (ids.SCHEDULER, message.sender):
        return None
    return f"{ids.name_of(node)} sent it with the sender {message.sender!r:.20}"
