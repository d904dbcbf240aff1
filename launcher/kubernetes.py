"""``--launcher kubernetes``: the objects of a job, for ``kubectl create``. Pure: no process, file or clock.

Nothing of the launcher runs there: each container is ``pslite run``, and a Job for each role starts its pods again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .errors import UsageError
from .hosts import Host
from .keys import JobKeys
from .options import Options
from .pods import PORT, Object, pod
from .spec import JobSpec, ProcessSpec

HOST = Host("kubernetes")  # stands for all of them: where a pod runs is not ours to say
_ROLES = ("scheduler", "server", "worker")
_BY_SIGNAL = list(range(128 + 1, 128 + 32))  # statuses of containers that a signal ended
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123
_LONGEST_NAME = 40  # characters: names of pods are longer, and may have 63
_NOT_THERE = {
    "hostfile": "Kubernetes chooses the nodes",
    "servers_on": "Kubernetes chooses the nodes",
    "interface": "a pod has one address",
    "python": "the image has its own, first in its PATH",
    "check": "it needs a cluster to look at; kubectl create --dry-run=server has it checked there",
    "log_dir": "kubectl logs has what processes write",
    "dry_run": "nothing is started anyway",
}


def check(options: Options) -> None:
    """Raises UsageError for what cannot be had in Kubernetes, and for names that it would refuse."""
    for field, reason in _NOT_THERE.items():
        if getattr(options, field):
            option = "-H" if field == "hostfile" else f"--{field.replace('_', '-')}"
            raise UsageError(f"{option} is not for --launcher kubernetes: {reason}")
    if not options.image:
        raise UsageError("--launcher kubernetes needs --image IMAGE, with Python, pslite and the program in it")
    name = options.name or "pslite"
    if not (_LABEL.fullmatch(name) and name[0].isalpha() and len(name) <= _LONGEST_NAME):
        rule = f"a letter first, then a-z, 0-9 and -, the last no -, at most {_LONGEST_NAME} characters"
        raise UsageError(f"--name {name!r} is no name for a Service and for Jobs: {rule}")
    if options.namespace is not None and not _LABEL.fullmatch(options.namespace):
        rule = "a-z, 0-9 and -, neither first nor last a -, at most 63 characters"
        raise UsageError(f"--namespace {options.namespace!r} is no name for one: {rule}")
    if options.max_restarts and not options.replicas:
        what = "no agent is there to keep what a server has for its successor (--max-restarts, --max-servers)"
        raise UsageError(f"{what}: give --replicas 1 too, or no restarts and --checkpoint-dir with --resume")
    _check_volumes(options)


def _check_volumes(options: Options) -> None:
    for claim, path in options.volume:
        if not (all(map(_LABEL.fullmatch, claim.split("."))) and path.startswith("/") and ":" not in path):
            raise UsageError(f"--volume {claim}:{path}: give CLAIM:/PATH, the name of a claim and where it is seen")
    where = options.checkpoint_dir
    if where is not None and not any(f"{where}/".startswith(f"{path.rstrip('/')}/") for _, path in options.volume):
        raise UsageError(f"--checkpoint-dir {where} would go with its pod: give --volume CLAIM:PATH, with it in PATH")


def manifest(options: Options, spec: JobSpec, job: str, keys: JobKeys | None) -> Object:
    """All objects of the job as one List."""
    name = options.name or f"pslite-{job[:6]}"
    items = [_service(name)]
    for role in _ROLES:
        full = f"{name}-{role}"
        processes = [process for process in spec.processes if process.role == role]
        files = {p.rank: keys.of([p], spec.replicas) for p in _all(spec, processes)} if keys is not None else None
        if files is not None:
            items.append(_secret(name, role, {file: text for each in files.values() for file, text in each.items()}))
        which = [(rank, file) for rank, each in files.items() for file in each] if files is not None else None
        items.append(_job(name, spec, processes, pod(full, processes[0], options, job, which)))
    if options.namespace is not None:
        for item in items:
            item["metadata"]["namespace"] = options.namespace
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _all(spec: JobSpec, processes: list[ProcessSpec]) -> list[ProcessSpec]:
    """Also those that may come later."""
    if spec.elastic is None or processes[0].role != "worker":
        return processes
    return [spec.elastic.worker(rank) for rank in range(spec.elastic.most)]


def _metadata(name: str, role: str) -> Object:
    return {"name": f"{name}-{role}", "labels": _labels(name, role)}


def _labels(name: str, role: str) -> dict[str, str]:
    part = "app.kubernetes.io"
    return {f"{part}/name": "pslite", f"{part}/instance": name, f"{part}/component": role}


def _service(name: str) -> Object:
    """A name for the scheduler's pod, whichever that is; at once, for to find it is how the others wait for it."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": _labels(name, "scheduler"),
        "ports": [{"name": "scheduler", "port": PORT}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(name, "scheduler"), "spec": spec}


def _secret(name: str, role: str, files: Mapping[str, str]) -> Object:
    head = {"apiVersion": "v1", "kind": "Secret", "metadata": _metadata(name, role)}
    return {**head, "type": "Opaque", "immutable": True, "stringData": files}


def _job(name: str, spec: JobSpec, processes: list[ProcessSpec], template: Object) -> Object:
    """A Job that starts a rank again which a signal or an eviction ended, but not one whose program failed.

    Of that the other workers hear, and end by themselves with an error that names it: a Job that would end them first
    makes it look as if they had died, and would come again.
    """
    role, count = processes[0].role, len(processes)
    again = 0 if role == "server" or (role == "worker" and spec.shrinks) else spec.max_restarts
    others_go_on = role == "worker" or (role == "server" and spec.replicas > 0)
    error = "FailIndex" if role == "worker" else "FailJob"
    rules = [
        {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": error, "onExitCodes": {"containerName": role, "operator": "NotIn", "values": _BY_SIGNAL}},
    ]
    body = {
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": count,
        "backoffLimitPerIndex": again,
        **({} if others_go_on else {"maxFailedIndexes": 0}),
        "podFailurePolicy": {"rules": rules},
        "template": {"metadata": {"labels": _labels(name, role)}, "spec": template},
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(name, role), "spec": body}
