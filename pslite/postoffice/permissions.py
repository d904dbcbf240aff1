"""Who may ask whom for what. What a program does with DATA and SIMPLE requests is its own affair."""

from __future__ import annotations

from pslite.wire import Op

_MEMBERS = frozenset(("server", "worker"))
_ALL = frozenset(("scheduler", "server", "worker"))

PERMISSIONS: dict[int, tuple[frozenset[str], frozenset[str]]] = {
    # operation: (who may ask, who answers)
    Op.JOIN: (_MEMBERS, frozenset(("scheduler",))),
    Op.LEAVE: (_MEMBERS, frozenset(("scheduler",))),
    Op.BARRIER: (_ALL, frozenset(("scheduler",))),
    Op.PUBLISH: (frozenset(("worker",)), frozenset(("scheduler",))),
    Op.LOOKUP: (_MEMBERS, frozenset(("scheduler",))),
    Op.EVENT: (frozenset(("scheduler",)), _MEMBERS),  # that a member has ended, that the job is over
    Op.DATA: (_ALL, _ALL),
    Op.SIMPLE: (_ALL, _ALL),
    Op.REPLICATE: (frozenset(("server",)), frozenset(("server",))),
}


def permitted(op: int, sender: str, receiver: str) -> bool:
    """Whether a role may ask a role for an operation."""
    askers, answerers = PERMISSIONS.get(op, (frozenset(), frozenset()))
    return sender in askers and receiver in answerers
