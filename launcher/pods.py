"""What runs in a pod of ``--launcher kubernetes``: ``pslite run``, for one rank of a role. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import by_hand
from .options import Options
from .spec import ProcessSpec

Object = dict[str, Any]  # as JSON

PORT = 9091  # of the scheduler, whose pod has an address of its own
_KEYS = "/var/run/pslite"  # where a container finds its key
_USER = 1000
_START_TIMEOUT = "600"  # seconds: images are pulled first, and a pod that failed comes again after a while
_FAILURES = "batch.kubernetes.io/job-index-failure-count"  # annotation: how often this rank was started again


def pod(name: str, process: ProcessSpec, options: Options, job: str, keys: Sequence[tuple[int, str]] | None) -> Object:
    """The pods of a role. ``process`` is any of that role, ``keys`` which rank gets which file of the Secret."""
    mounts: list[Object] = []
    volumes: list[Object] = []
    if keys is not None:
        items = [{"key": file, "path": f"{rank}/{file}"} for rank, file in keys]
        volumes.append({"name": "keys", "secret": {"secretName": name, "defaultMode": 0o400, "items": items}})
        # Its own directory only: no container can speak for another rank.
        mounts.append({"name": "keys", "mountPath": _KEYS, "subPathExpr": "$(JOB_COMPLETION_INDEX)", "readOnly": True})
    for number, (claim, path) in enumerate(options.volume):
        mounts.append({"name": f"volume-{number}", "mountPath": path})
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}})
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "shareProcessNamespace": True,  # else the program is process 1, which no signal ends by default
        "terminationGracePeriodSeconds": math.ceil(options.grace),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,  # which may read the keys
            "fsGroupChangePolicy": "OnRootMismatch",  # else all files of a volume are changed each time
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(name, process, options, job, mounts, keys is not None)],
        "volumes": volumes,
    }


def _container(
    name: str, process: ProcessSpec, options: Options, job: str, mounts: Sequence[Object], with_keys: bool
) -> Object:
    role = process.role
    # The scheduler listens at the address of its pod, which the others find by the Service.
    root = f"tcp://:{PORT}" if role == "scheduler" else f"tcp://{name.removesuffix(role)}scheduler:{PORT}"
    words = ["pslite", "run", "--role", role, "--root", root, *(["--key", _KEYS] if with_keys else [])]
    container = {
        "name": role,
        "image": options.image,
        "command": [*words, "--", *map(_literal, process.argv)],
        "env": _environment(role, process.env, job),
        "volumeMounts": mounts,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if options.chdir is not None:
        container["workingDir"] = options.chdir
    if role == "scheduler":
        # The others listen at no port that is known beforehand, or at none: it is the scheduler who looks after them.
        probe = {"tcpSocket": {"port": PORT}}
        container["ports"] = [{"name": "scheduler", "containerPort": PORT}]
        container["startupProbe"] = {**probe, "periodSeconds": 2, "failureThreshold": 30}
        container["livenessProbe"] = {**probe, "periodSeconds": 10, "failureThreshold": 3}
    return container


def _environment(role: str, env: Mapping[str, str], job: str) -> list[Object]:
    told = {"HOME": "/tmp", "PSLITE_START_TIMEOUT": _START_TIMEOUT, "PSLITE_JOB_ID": job}
    told |= {name: value for name, value in env.items() if name not in by_hand.SETS}
    found: list[Object] = [{"name": name, "value": _literal(value)} for name, value in sorted(told.items())]
    if role != "worker":
        found.append(_field("DMLC_NODE_HOST", "status.podIP"))
    return [*found, _field("PSLITE_RESTARTS", f"metadata.annotations['{_FAILURES}']")]


def _field(variable: str, path: str) -> Object:
    return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _literal(text: str) -> str:
    """A text in which Kubernetes does not replace $(NAME)."""
    return text.replace("$", "$$")
