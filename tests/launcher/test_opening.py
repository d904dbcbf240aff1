"""From the agents' greetings to the orders to start; and whether the other end of a carrier is there."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.hosts import Host
from launcher.keys import JobKeys
from launcher.opening import NotReady, Opening
from launcher.options import parse
from launcher.protocol import PROTOCOL
from launcher.pulse import Pulse
from launcher.spec import plan

ROOT = "tcp://10.0.0.1:4711"


def greeting(came_to: str | None = None, came_from: str | None = None, protocol: int = PROTOCOL) -> dict[str, Any]:
    return {"event": "hello", "protocol": protocol, "came_to": came_to, "came_from": came_from}


def opening(*hosts: Host, arguments: tuple[str, ...] = (), keys: JobKeys | None = None) -> Opening:
    spec = plan(parse(["-H", "x", "-n", "2", "-s", "2", *arguments, "python"], "x"), hosts, {}, here="/here")
    return Opening(spec, "job", 10.0, keys)


def test_the_schedulers_host_listens_where_ssh_came_to_it() -> None:
    steps = opening(Host("a"), Host("b"))
    assert steps.greeted("b", greeting("10.0.0.2", "10.0.0.9")) == []
    assert steps.missing() == ["a"]
    ((host, order),) = steps.greeted("a", greeting("10.0.0.1", "10.0.0.9"))
    assert (host, order["do"], order["address"], order["towards"]) == ("a", "open", "10.0.0.1", ["b"])
    starts = dict(steps.opened(ROOT))
    assert {order["root"] for order in starts.values()} == {ROOT}
    assert [p["rank"] for p in starts["b"]["processes"] if p["role"] == "worker"] == [1]
    assert steps.started


def test_if_that_is_the_launchers_host_where_the_others_came_from() -> None:
    steps = opening(Host("localhost"), Host("b"))
    steps.greeted("localhost", greeting())
    ((_, order),) = steps.greeted("b", greeting("10.0.0.2", "10.0.0.9"))
    assert order["address"] == "10.0.0.9"


def test_an_address_that_was_given_goes_first_then_the_interface() -> None:
    steps = opening(Host("a", address="192.0.2.1"), Host("b"), arguments=("--interface", "eth1"))
    steps.greeted("b", greeting("10.0.0.2", "10.0.0.9"))
    ((_, order),) = steps.greeted("a", greeting("10.0.0.1", "10.0.0.9"))
    assert order["address"] == "192.0.2.1"
    steps = opening(Host("a"), arguments=("--interface", "eth1"))
    ((_, order),) = steps.greeted("a", greeting("10.0.0.1", "10.0.0.9"))
    assert (order["address"], order["interface"]) == (None, "eth1")


def test_another_version_is_told_by_name() -> None:
    with pytest.raises(NotReady, match=r"its agent speaks protocol 1, this launcher .*: install the same version"):
        opening(Host("a")).greeted("a", greeting(protocol=1))


@pytest.mark.processes
def test_a_host_gets_its_own_keys_and_the_schedulers_those_of_newcomers() -> None:
    steps = opening(Host("a"), Host("b"), arguments=("--elastic", "2:3"), keys=JobKeys(3, 2))
    for host in "ab":
        steps.greeted(host, greeting())
    keys = {host: set(order["keys"]) for host, order in steps.opened(ROOT)}
    assert keys["a"] == {"scheduler.key", "server-0.key", "worker-0.key", "worker-2.key", "roster.json"}
    assert keys["b"] == {"server-1.key", "worker-1.key", "roster.json"}


def test_silence_is_loss_while_we_were_listening() -> None:
    pulse = Pulse(2.5, 0.0)
    times = [tick / 4 for tick in range(1, 20)]
    assert next(now for now in times if pulse.is_lost(now)) == 2.75
    pulse.heard(5.0)
    assert not pulse.is_lost(5.5)


def test_a_judge_that_was_held_up_begins_anew() -> None:
    pulse = Pulse(2.5, 0.0)
    assert not pulse.is_lost(60.0)
    assert not pulse.is_lost(61.0)


def test_a_pause_that_was_announced_is_no_loss() -> None:
    pulse = Pulse(2.5, 0.0)
    pulse.pause()
    assert not any(pulse.is_lost(tick / 4) for tick in range(400))
    pulse.heard(100.0)
    assert any(pulse.is_lost(100 + tick / 4) for tick in range(12))
