"""SimpleApp: a head and a body to a node or a group, and what comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pslite import ALL, SCHEDULER, SERVER_GROUP, WORKER_GROUP, InprocCluster, Postoffice, SimpleApp, SimpleData
from pslite.errors import ConfigError, PeerLost, ProtocolError, RemoteError, RequestTimeout, ShapeError


@pytest.fixture
def cluster() -> Iterator[InprocCluster]:
    with InprocCluster(workers=2, servers=2) as cluster:
        yield cluster


def echo(data: SimpleData, app: SimpleApp) -> None:
    app.response(data, [app.office.node, data.head, data.body])


def apps(cluster: InprocCluster, handle: Any = echo, app_id: int = 3) -> dict[int, SimpleApp]:
    return {office.node: SimpleApp(app_id, 0, office, handle) for office in cluster.offices}


@pytest.mark.parametrize("sender", [1, 8, 9])
@pytest.mark.parametrize("target", [1, 8, 10, 9, 11, SERVER_GROUP, WORKER_GROUP, SCHEDULER + SERVER_GROUP, ALL])
def test_every_node_reaches_every_node_and_group(cluster: InprocCluster, sender: int, target: int) -> None:
    """Workers do not know each other's address, servers not the workers': the scheduler relays."""
    app = apps(cluster)[sender]
    answers = app.wait(app.request(7, {"x": [1, "a"]}, target))
    assert answers == [[node, 7, {"x": [1, "a"]}] for node in app.office.node_ids(target)]


def test_the_default_handle_answers_nothing(cluster: InprocCluster) -> None:
    asking, _ = SimpleApp(0, 0, cluster.workers[0]), SimpleApp(0, 0, cluster.servers[0])
    assert asking.wait(asking.request(1, "hello", 8)) == [None]


def test_requests_arrive_in_order_and_say_who_sent_them(cluster: InprocCluster) -> None:
    seen: list[SimpleData] = []

    def handle(data: SimpleData, app: SimpleApp) -> None:
        seen.append(data)
        app.response(data)

    SimpleApp(0, 0, cluster.servers[0], handle)
    asking = SimpleApp(0, 4, cluster.workers[1])
    for timestamp in [asking.request(head, str(head), 8) for head in range(50)]:
        asking.wait(timestamp)
    assert [(d.head, d.body, d.timestamp) for d in seen] == [(i, str(i), i) for i in range(50)]
    assert {(d.sender, d.customer_id) for d in seen} == {(11, 4)}


def test_the_response_handle_runs_for_each_response_before_wait_returns(cluster: InprocCluster) -> None:
    app = apps(cluster)[9]
    seen: list[Any] = []
    app.set_response_handle(lambda data, _: seen.append((data.sender, data.head, data.body)))
    app.wait(app.request(5, "b", SERVER_GROUP))
    assert seen == [(8, 5, [8, 5, "b"]), (10, 5, [10, 5, "b"])]


def test_the_request_handle_can_be_replaced(cluster: InprocCluster) -> None:
    served, asking = SimpleApp(0, 0, cluster.servers[0]), SimpleApp(0, 0, cluster.workers[0])
    served.set_request_handle(lambda data, app: app.response(data, "new"))
    assert asking.wait(asking.request(0, None, 8)) == ["new"]


def test_a_request_may_come_before_the_app_exists(cluster: InprocCluster) -> None:
    asking = SimpleApp(0, 0, cluster.workers[0])
    timestamp = asking.request(0, "early", 8)
    with pytest.raises(RequestTimeout):
        asking.wait(timestamp, timeout=0.05)
    SimpleApp(0, 0, cluster.servers[0], echo)
    assert asking.wait(timestamp) == [[8, 0, "early"]]


def test_apps_are_apart(cluster: InprocCluster) -> None:
    one, two = apps(cluster, app_id=1), apps(cluster, lambda d, a: a.response(d, "two"), app_id=2)
    assert one[9].wait(one[9].request(0, "x", 8)) == [[8, 0, "x"]]
    assert two[9].wait(two[9].request(0, "x", 8)) == ["two"]


def test_an_exception_in_the_handle_reaches_the_caller(cluster: InprocCluster) -> None:
    def handle(data: SimpleData, app: SimpleApp) -> None:
        if data.head == 1:
            raise ValueError("no such thing")
        app.response(data, "fine")

    SimpleApp(0, 0, cluster.servers[0], handle)
    asking = SimpleApp(0, 0, cluster.workers[0])
    timestamp = asking.request(1, None, 8)
    with pytest.raises(RemoteError) as caught:
        asking.wait(timestamp)
    assert (caught.value.node, caught.value.error) == ("server 0", "ValueError: no such thing")
    assert "in handle" in caught.value.trace
    assert asking.wait(asking.request(2, None, 8)) == ["fine"], "the server lives on"


def test_a_typed_error_stays_what_it_is(cluster: InprocCluster) -> None:
    apps(cluster, lambda d, a: a.error(d, ShapeError(key="w", got=[1], expected=[2])), app_id=0)
    asking = SimpleApp(0, 9, cluster.workers[0])
    with pytest.raises(ShapeError, match=r"shape \(1,\), expected \(2,\)"):
        asking.wait(asking.request(0, None, 8))


def test_an_error_of_one_of_a_group_is_the_error_of_the_request(cluster: InprocCluster) -> None:
    def handle(data: SimpleData, app: SimpleApp) -> None:
        if app.office.node == 10:
            raise KeyError("only here")
        app.response(data)

    app = apps(cluster, handle)[9]
    with pytest.raises(RemoteError, match="server 1"):
        app.wait(app.request(0, None, SERVER_GROUP))


def test_an_exception_in_the_response_handle_is_the_callers(cluster: InprocCluster) -> None:
    app = apps(cluster)[9]

    def broken(data: SimpleData, _: SimpleApp) -> None:
        raise ZeroDivisionError("mine")

    app.set_response_handle(broken)
    with pytest.raises(ZeroDivisionError, match="mine"):
        app.wait(app.request(0, None, 8))


def test_a_response_may_come_later_and_from_another_thread(cluster: InprocCluster) -> None:
    parked: list[SimpleData] = []
    there = threading.Event()

    def handle(data: SimpleData, app: SimpleApp) -> None:
        parked.append(data)
        if len(parked) == 3:
            there.set()

    served = SimpleApp(0, 0, cluster.servers[0], handle)
    asking = SimpleApp(0, 0, cluster.workers[0])
    timestamps = [asking.request(i, None, 8) for i in range(3)]

    def answer() -> None:
        assert there.wait(10)
        for data in reversed(parked):
            served.response(data, data.head * 10)

    thread = threading.Thread(target=answer)
    thread.start()
    assert [asking.wait(t) for t in timestamps] == [[0], [10], [20]]
    thread.join()


def test_a_node_that_does_not_exist(cluster: InprocCluster) -> None:
    asking = SimpleApp(0, 0, cluster.workers[0])
    with pytest.raises(PeerLost, match="worker 10 is lost: this process has no way to reach it"):
        asking.wait(asking.request(0, None, 29))


def test_a_body_that_is_too_large_is_refused(cluster: InprocCluster) -> None:
    asking = SimpleApp(0, 0, cluster.workers[0])
    with pytest.raises(ProtocolError, match="at most 2097152 are allowed"):
        asking.request(0, bytes(2 * 1024 * 1024 + 1), 8)


def test_the_largest_body_arrives(cluster: InprocCluster) -> None:
    asking, _ = SimpleApp(0, 0, cluster.workers[0]), SimpleApp(0, 0, cluster.servers[0], echo)
    body = bytes(range(256)) * 4096
    assert asking.wait(asking.request(0, body, 8)) == [[8, 0, body]]


UNSENDABLE = [object(), {1, 2}, np.float32(1), [np.arange(3)], {"a": object()}, 2**64, {"x": [b"1234567"] * 600_000}]


@pytest.mark.parametrize("body", UNSENDABLE, ids=lambda body: type(body).__name__)
def test_a_body_that_cannot_travel_is_refused_and_nothing_else_breaks(cluster: InprocCluster, body: object) -> None:
    asking, _ = SimpleApp(0, 0, cluster.workers[0]), SimpleApp(0, 0, cluster.servers[0], echo)
    with pytest.raises(ProtocolError, match=r"cannot be sent|header would exceed"):
        asking.request(0, body, 8)
    assert asking.wait(asking.request(1, "next", 8), timeout=5) == [[8, 1, "next"]]


@pytest.mark.parametrize("head", [2**64, 1.5, "head", None])
def test_a_head_that_is_no_number_is_refused(cluster: InprocCluster, head: Any) -> None:
    asking, _ = SimpleApp(0, 0, cluster.workers[0]), SimpleApp(0, 0, cluster.servers[0], echo)
    with pytest.raises(ConfigError, match="give an integer"):
        asking.request(head, None, 8)
    assert asking.wait(asking.request(1, "next", 8), timeout=5) == [[8, 1, "next"]]


@pytest.mark.parametrize("body", UNSENDABLE[:3], ids=lambda body: type(body).__name__)
def test_a_response_that_cannot_travel_is_an_error_at_the_caller(cluster: InprocCluster, body: object) -> None:
    SimpleApp(0, 0, cluster.servers[0], lambda data, app: app.response(data, body if data.head == 0 else "fine"))
    asking = SimpleApp(0, 0, cluster.workers[0])
    with pytest.raises(ProtocolError, match="cannot be sent"):
        asking.wait(asking.request(0, None, 8), timeout=5)
    assert asking.wait(asking.request(1, None, 8), timeout=5) == ["fine"]


def test_a_closed_app_accepts_nothing(cluster: InprocCluster) -> None:
    served, asking = SimpleApp(0, 0, cluster.servers[0], echo), SimpleApp(0, 0, cluster.workers[0])
    served.close()
    with pytest.raises(RequestTimeout):
        asking.wait(asking.request(0, None, 8), timeout=0.05)


def test_a_handle_may_ask_others_itself(cluster: InprocCluster) -> None:
    """A request from inside a handle, whose answer comes by a callback."""

    def forward(data: SimpleData, app: SimpleApp) -> None:
        inner.set_response_handle(lambda answer, _: app.response(data, ["via", app.office.node, answer.body]))
        inner.request(data.head, data.body, 10)

    def of(office: Postoffice, handle: Any, app_id: int) -> SimpleApp:
        return SimpleApp(app_id, 0, office, handle)

    inner = of(cluster.servers[0], echo, 1)
    of(cluster.servers[1], echo, 1)
    of(cluster.servers[0], forward, 0)
    asking = of(cluster.workers[0], echo, 0)
    assert asking.wait(asking.request(3, "b", 8)) == [["via", 8, [10, 3, "b"]]]
