"""Who is not a member costs the scheduler an answer, and nothing that stays; nobody else hears of him."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pslite import InprocCluster, Postoffice
from pslite.delivery import Send
from pslite.postoffice.core import Core
from pslite.van.base import Received
from pslite.wire import Flag, Kind, Link, Message, Op

JOIN = ["worker", None, [], "host", 1]


@pytest.fixture
def cluster() -> Iterator[InprocCluster]:
    with InprocCluster(workers=2, servers=1) as cluster:
        yield cluster


def said(office: Postoffice, link: Link, message: Message) -> list[Message]:
    """What a process sends when this comes by a connection."""
    shell = office._shell
    with shell.lock:
        actions = shell.core.on_event(shell.now(), Received(link, message))
    return [action.message for action in actions if isinstance(action, Send)]


def kept(core: Core) -> int:
    return len(core.delivery._inboxes)


@pytest.mark.parametrize("body", [JOIN, None, ["printer", 1]])
@pytest.mark.parametrize("seq", [0, 1, 5])
def test_refused_joins_leave_nothing(cluster: InprocCluster, seq: int, body: object) -> None:
    core = cluster.scheduler._core
    before = kept(core)
    for number in range(200):
        message = Message(Kind.REQUEST, core.delivery.job, op=Op.JOIN, incarnation=number, seq=seq, floor=1, body=body)
        [reply] = said(cluster.scheduler, b"stranger", message)
        assert reply.flags & Flag.ERROR
    assert kept(core) == before


@pytest.mark.parametrize(("office", "link"), [(1, b"stranger"), (2, 1), (2, 8)])
def test_wishes_to_join_leave_nothing_at_who_is_no_scheduler(cluster: InprocCluster, office: int, link: Link) -> None:
    asked = cluster.offices[office]
    before = kept(asked._core)
    for number in range(200):
        message = Message(Kind.REQUEST, asked._core.delivery.job, op=Op.JOIN, incarnation=number, seq=1, body=JOIN)
        [reply] = said(asked, link, message)
        assert reply.flags & Flag.ERROR
    assert kept(asked._core) == before


@pytest.mark.parametrize("kind", list(Kind))
def test_only_members_are_relayed(cluster: InprocCluster, kind: Kind) -> None:
    core = cluster.scheduler._core
    link = core.delivery.link_to(9)
    assert link is not None
    message = Message(kind, core.delivery.job, sender=9, recver=11)
    assert said(cluster.scheduler, link, message) == [message]
    assert said(cluster.scheduler, b"stranger", message) == []
    message.sender = 13  # nobody
    assert said(cluster.scheduler, link, message) == []
