"""Node ids and groups, as in ps-lite: scheduler 1, server rank r is 8 + 2r, worker rank r is 9 + 2r."""

from __future__ import annotations

SCHEDULER = 1
SERVER_GROUP = 2
WORKER_GROUP = 4
ALL = SCHEDULER + SERVER_GROUP + WORKER_GROUP  # groups are sums

ROLES = ("scheduler", "server", "worker")


def server_id(rank: int) -> int:
    """The node id of the server with this rank."""
    return 8 + 2 * rank


def worker_id(rank: int) -> int:
    """The node id of the worker with this rank."""
    return 9 + 2 * rank


def backup_of(server: int, num_servers: int) -> int:
    """The server that has a replica of another one, if servers have replicas: the next one."""
    return server_id((rank_of(server) + 1) % num_servers)


def node_id(role: str, rank: int) -> int:
    """The node id of a role and rank."""
    return SCHEDULER if role == "scheduler" else server_id(rank) if role == "server" else worker_id(rank)


def role_of(node: int) -> str:
    """The role of a node id."""
    return "scheduler" if node == SCHEDULER else "worker" if node % 2 else "server"


def rank_of(node: int) -> int:
    """The rank of a node id among the nodes of its role; the scheduler's is 0."""
    return max((node - 8) // 2, 0)


def name_of(node: int) -> str:
    """What people call a node: ``scheduler``, ``server 0``, ``worker 3``."""
    return "scheduler" if node == SCHEDULER else f"{role_of(node)} {rank_of(node)}"


def members(group: int, num_servers: int, num_workers: int) -> list[int]:
    """The node ids of a group, a sum of groups, or of a single node, in a fixed order."""
    if group >= 8:
        return [group]
    nodes = [SCHEDULER] if group & SCHEDULER else []
    if group & SERVER_GROUP:
        nodes += [server_id(r) for r in range(num_servers)]
    if group & WORKER_GROUP:
        nodes += [worker_id(r) for r in range(num_workers)]
    return nodes
