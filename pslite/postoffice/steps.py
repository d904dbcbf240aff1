"""What the services of the scheduler decided, as actions of its core. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pslite import ids
from pslite.delivery import Send
from pslite.errors import PSError
from pslite.failpoints import failpoint
from pslite.wire import Flag, Kind, Message, Op

from .actions import Action
from .membership import Member
from .recovery import Hello
from .roster import Peer
from .scheduler import Step

if TYPE_CHECKING:
    from .core import Core

_POINTS: dict[int, str] = {Op.JOIN: "join_reply", Op.BARRIER: "barrier_release"}


def carry_out(core: Core, now: float, step: Step) -> list[Action]:
    """Carry out what the scheduler's services decided."""
    actions: list[Action] = []
    if step.complete:
        assert core.scheduler is not None
        core.scheduler_ready()
    actions += _welcome(core, now, step.hellos)
    for answer in step.answers:
        if answer.request.op in _POINTS:
            failpoint(_POINTS[answer.request.op])
        actions += core.answer(answer.request, answer.body, answer.error)
        if answer.request.op == Op.JOIN and not core.is_member(answer.request):
            core.delivery.forget(answer.request.incarnation)  # strangers may come without end
    actions += core.beats(step.beats)
    for node, error in step.ended:
        actions += core.lose(node, error)
    for node, error in step.away:
        actions += core.away(node, error)
    for node, body in step.events:
        failpoint("epoch_change")
        message = Message(Kind.REQUEST, op=Op.EVENT, body=body)
        actions += core.request(now, node, message, lambda _: None)[1]
    for member in step.back:  # after the events that say that their predecessors died
        actions += core.back(now, Peer(*member.entry()), member.link)
        actions += _announce(core, now, member)
    if step.failure is not None:
        core.fatal = core.fatal or step.failure
    if step.over is not None:
        core.job_over, core.job_clean = True, step.over
    for link, request in step.joins:
        assert core.scheduler is not None
        actions += carry_out(core, now, core.scheduler.on_request(link, request, now))
    return actions


def _welcome(core: Core, now: float, hellos: Sequence[tuple[Hello, Any]]) -> list[Action]:
    """Answer HELLOs, with the table or an error."""
    actions: list[Action] = []
    for hello, body in hellos:
        failed = isinstance(body, PSError)
        answer = Message(Kind.HELLO, core.delivery.job, ids.SCHEDULER, hello.node, core.delivery.incarnation)
        answer.body, answer.flags = body.to_wire() if failed else body, Flag.ERROR if failed else 0
        if not failed:
            core.delivery.open(hello.node, hello.link)
            if hello.scheduler != core.delivery.incarnation:
                core.delivery.expect(hello.incarnation, hello.link, hello.next)
                actions += core.delivery.begin_at(now, hello.node, hello.heard)
        actions.append(Send(hello.link, answer))
    return actions


def _announce(core: Core, now: float, member: Member) -> list[Action]:
    """Tell all others of a successor, and note who has heard of it."""
    actions: list[Action] = []
    for node in list(member.untold):
        failpoint("epoch_change")
        subject = (member.node, member.incarnation, node)
        message = Message(Kind.REQUEST, op=Op.EVENT, body=["back", member.entry()])
        actions += core.request(now, node, message, lambda _, s=subject: core.acknowledged_by.append(s))[1]  # type: ignore[misc]
    return actions
