"""What of an order to the host ``ray`` is for one actor, and what all actors' answers are together. Pure."""

from __future__ import annotations

from launcher.keys import key_file
from launcher.protocol import Message


def keys_of(process: Message, order: Message) -> dict[str, str]:
    """Of the keys in an order to start those that this process needs, as on a host of its own."""
    owned = {key_file(other["role"], other["rank"]) for other in order["processes"]}
    servers = sum(other["role"] == "server" for other in order["processes"])
    needed = {key_file(process["role"], process["rank"])}
    if process["role"] == "server" and order["replicas"]:
        needed.add(key_file("server", (process["rank"] - 1) % servers))
    if process["role"] == "scheduler":
        needed |= order["keys"].keys() - owned  # of workers that are started by hand, who look there
    return {name: key for name, key in order["keys"].items() if name in needed or not name.endswith(".key")}


def summary(looks: list[Message]) -> Message:
    """Of what the agents have found out on their nodes: the first, with the problems of all."""
    first = looks[0]
    problems = [f"{look['host']}: {look['problem']}" for look in looks if look["problem"]]
    for look in looks[1:]:
        for name, version in look["versions"].items():
            if version != first["versions"][name]:
                theirs, ours = (found or "not installed" for found in (version, first["versions"][name]))
                problems.append(f"{name} on {look['host']}: {theirs}; on {first['host']}: {ours}")
    return first | {"problem": "; ".join(dict.fromkeys(problems))}
