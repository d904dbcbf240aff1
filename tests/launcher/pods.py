"""What Kubernetes makes of the objects of a job, as far as it matters here: pods are processes of this host."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.harness import wait_until

from .launching import LONGEST, ROOT

Object = dict[str, Any]


def expand(text: str, env: dict[str, str]) -> str:
    """$(NAME) in commands, values and paths: replaced if there is such a variable; $$ is a dollar."""
    found, rest = "", text
    while "$" in rest[:-1]:
        before, rest = rest.split("$", 1)
        found += before
        if rest[0] == "$":
            found, rest = found + "$", rest[1:]
        elif rest[0] == "(" and ")" in rest:
            name, rest = rest[1:].split(")", 1)
            found += env.get(name, f"$({name})")
        else:
            found, rest = found + "$" + rest[0], rest[1:]
    return found + rest


@dataclass
class Pod:
    """One try of a rank of a Job."""

    role: str
    rank: int
    failures: int  # of the rank before
    process: subprocess.Popen[bytes]
    log: Path


@dataclass
class RunningJob:
    """A Job: completionMode Indexed, with a podFailurePolicy."""

    role: str
    spec: Object
    pods: list[Pod] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    over: str = ""  # "Complete" or "Failed"


class Cluster:
    """Runs a manifest. The Service's name is that of the loopback; all containers see the same files."""

    def __init__(self, manifest: Object, directory: Path, **env: str) -> None:
        self._directory, self._env = directory, env
        items: list[Object] = manifest["items"]
        self.secrets = {item["metadata"]["name"]: item["stringData"] for item in items if item["kind"] == "Secret"}
        [service] = (item for item in items if item["kind"] == "Service")
        self._service, self._port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._free_port = probe.getsockname()[1]
        self.jobs = {
            item["spec"]["template"]["spec"]["containers"][0]["name"]: RunningJob(
                item["spec"]["template"]["spec"]["containers"][0]["name"], item["spec"]
            )
            for item in items
            if item["kind"] == "Job"
        }

    def __enter__(self) -> Cluster:
        for job in self.jobs.values():
            for rank in range(job.spec["completions"]):
                self._start(job, rank, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in self.jobs.values():
            for pod in job.pods:
                pod.process.kill()
                pod.process.wait()

    def pod(self, role: str, rank: int = 0) -> Pod:
        """The newest of a rank."""
        return next(pod for pod in reversed(self.jobs[role].pods) if pod.rank == rank)

    def run(self) -> dict[str, str]:
        """Look after the pods until every Job is over; how each has ended."""
        wait_until(self._look, LONGEST, "the end of all Jobs")
        return {role: job.over for role, job in self.jobs.items()}

    def logs(self, role: str | None = None) -> str:
        """What the pods have written."""
        pods = [pod for job in self.jobs.values() for pod in job.pods if role in (None, pod.role)]
        return "".join(f"{pod.role}-{pod.rank}: {pod.log.read_text(errors='replace')}" for pod in pods)

    def _look(self) -> bool:
        for job in self.jobs.values():
            for pod in list(job.pods):
                status = pod.process.poll()
                if status is not None and not job.over and pod is self.pod(job.role, pod.rank):
                    self._ended(job, pod, status if status >= 0 else 128 - status)
        return all(job.over for job in self.jobs.values())

    def _ended(self, job: RunningJob, pod: Pod, status: int) -> None:
        rules = job.spec["podFailurePolicy"]["rules"]
        action = next((rule["action"] for rule in rules if _matches(rule, status)), "Count")
        if status == 0:
            job.done.add(pod.rank)
        elif action == "FailJob":
            return self._fail(job)
        elif action == "Count" and pod.failures < job.spec["backoffLimitPerIndex"]:
            return self._start(job, pod.rank, pod.failures + 1)
        else:
            job.failed.add(pod.rank)
            if len(job.failed) > job.spec.get("maxFailedIndexes", job.spec["completions"]):
                return self._fail(job)
        if len(job.done) + len(job.failed) == job.spec["completions"]:
            job.over = "Failed" if job.failed else "Complete"
        return None

    def _fail(self, job: RunningJob) -> None:
        job.over = "Failed"
        for pod in job.pods:
            if pod.process.poll() is None:
                pod.process.send_signal(signal.SIGTERM)

    def _start(self, job: RunningJob, rank: int, failures: int) -> None:
        spec = job.spec["template"]["spec"]
        [container] = spec["containers"]
        annotations = {"batch.kubernetes.io/job-index-failure-count": str(failures)}
        fields = {"status.podIP": "127.0.0.1"} | {f"metadata.annotations['{n}']": v for n, v in annotations.items()}
        env = {"JOB_COMPLETION_INDEX": str(rank)}
        for variable in container["env"]:
            if "value" in variable:
                env[variable["name"]] = expand(variable["value"], env)
            else:
                env[variable["name"]] = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        directory = self._directory / f"{job.role}-{rank}-{failures}"
        mounts = {mount["mountPath"]: self.mount(spec, mount, rank) for mount in container["volumeMounts"]}
        command = [self._here(expand(word, env), mounts) for word in container["command"]]
        here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        directory.mkdir(parents=True, exist_ok=True)
        log = directory / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=env | here | self._env, stdout=out, stderr=out, cwd=directory)
        job.pods.append(Pod(job.role, rank, failures, process, log))

    def mount(self, spec: Object, mount: Object, rank: int) -> str:
        """The directory that a container sees: of a Secret the files that its subPath has."""
        [volume] = (volume["secret"] for volume in spec["volumes"] if volume["name"] == mount["name"])
        directory = self._directory / volume["secretName"]
        for item in volume["items"]:
            path = directory / item["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.secrets[volume["secretName"]][item["key"]])
            path.chmod(0o600)  # here we are its owner
        return str(directory / expand(mount["subPathExpr"], {"JOB_COMPLETION_INDEX": str(rank)}))

    def _here(self, word: str, mounts: dict[str, str]) -> str:
        for root, host in ((f"tcp://{self._service}:{self._port}", "127.0.0.1"), (f"tcp://:{self._port}", "")):
            if word == root:
                return f"tcp://{host}:{self._free_port}"
        return mounts.get(word, word)


def _matches(rule: Object, status: int) -> bool:
    """Whether a rule is about containers that end with this status."""
    codes = rule.get("onExitCodes")
    return codes is not None and codes["operator"] == "NotIn" and status not in codes["values"]
