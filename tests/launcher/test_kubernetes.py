"""The objects that ``--launcher kubernetes`` writes: by Kubernetes' own schema, and by what comes of them."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import cli, kubernetes
from launcher.keys import JobKeys
from launcher.options import parse
from tests.conftest import installed
from tests.harness import wait_until

from .launching import LONGEST, ROOT, launch
from .pods import Cluster, expand

Object = dict[str, Any]
IMAGE = ("--launcher", "kubernetes", "--image", "me/train:1")
JOB = (*IMAGE, "--name", "try")
TRAIN = ("python", "train.py")
VARIANTS = {
    "plain": ("-n", "4", "-s", "2"),
    "survives": ("-n", "4", "-s", "2", "--replicas", "1", "--max-restarts", "3"),
    "shrinks": ("-n", "4", "-s", "2", "--on-worker-lost", "shrink"),
    "elastic": ("--elastic", "1:4", "-s", "2", "--namespace", "ml", "--chdir", "/work"),
    "checkpoints": ("-n", "1", "--volume", "data:/data", "--checkpoint-dir", "/data/c", "--checkpoint-every", "60"),
    "without keys": ("-n", "1", "--env", "PSLITE_SECURITY=none"),
}


@functools.cache
def keys_of(workers: int, servers: int) -> JobKeys:
    """It takes half a second to make some."""
    return JobKeys(workers, servers)


@pytest.fixture(autouse=True)
def quick_keys_and_a_plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "JobKeys", keys_of)
    for name in [name for name in os.environ if name.startswith(("PSLITE_", "DMLC_"))]:
        monkeypatch.delenv(name)


def manifest(capsys: pytest.CaptureFixture[str], *arguments: str) -> Object:
    """What the launcher writes."""
    assert cli.main(arguments) == 0
    found: Object = json.loads(capsys.readouterr().out)
    return found


def of_kind(found: Object, kind: str) -> dict[str, Object]:
    """Its objects of a kind, by name."""
    return {item["metadata"]["name"]: item for item in found["items"] if item["kind"] == kind}


def container_of(job: Object) -> Object:
    [container] = job["spec"]["template"]["spec"]["containers"]
    return dict(container)


# The schema


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    """The schemas of Kubernetes; skips where they are not installed, which is a failure if CI=true."""
    return installed("kubernetes_validate", "test")


@pytest.mark.parametrize("variant", VARIANTS)
def test_kubernetes_would_take_them(capsys: pytest.CaptureFixture[str], checker: ModuleType, variant: str) -> None:
    found = manifest(capsys, *JOB, *VARIANTS[variant], *TRAIN)
    assert set(of_kind(found, "Job")) == {"try-scheduler", "try-server", "try-worker"}
    for version in ("1.33", checker.latest_version()):
        for item in found["items"]:
            checker.validate(item, version, strict=True)


def test_the_checker_sees_a_mistake(capsys: pytest.CaptureFixture[str], checker: ModuleType) -> None:
    found = manifest(capsys, *JOB, "-n", "1", *TRAIN)
    job = of_kind(found, "Job")["try-worker"]
    job["spec"]["backofLimitPerIndex"] = 1
    with pytest.raises(checker.ValidationError, match="backofLimitPerIndex"):
        checker.validate(job, checker.latest_version(), strict=True)


# What they say


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_no_text_is_taken_for_a_variable_of_kubernetes(text: str) -> None:
    for hostile in (text, f"$({text})", f"$${text}$(HOME)$"):
        assert expand(hostile.replace("$", "$$"), {"HOME": "x", "": "y"}) == hostile


def test_arguments_and_values_arrive_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["a b", "$(JOB_COMPLETION_INDEX)", "$$", "'\"`;&|", "line\nline", "-n", "$(", "ünï"]
    found = manifest(capsys, *JOB, "-n", "1", "--env", "WHAT=$(HOME) $x", "--", *TRAIN, *words)
    container = container_of(of_kind(found, "Job")["try-worker"])
    known = {"JOB_COMPLETION_INDEX": "0", "HOME": "/root"}
    assert [expand(word, known) for word in container["command"]][-len(words) :] == words
    values = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    assert expand(values["WHAT"], known) == "$(HOME) $x"


def test_a_rank_comes_again_after_a_signal_but_not_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = of_kind(manifest(capsys, *JOB, *VARIANTS["survives"], *TRAIN), "Job")
    again = {n: (job["spec"]["backoffLimitPerIndex"], job["spec"].get("maxFailedIndexes")) for n, job in jobs.items()}
    # Of two servers one may be lost: the other has its replica. Workers end by themselves when one has failed.
    assert again == {"try-scheduler": (3, 0), "try-server": (0, None), "try-worker": (3, None)}
    for job in jobs.values():
        disruption, error = job["spec"]["podFailurePolicy"]["rules"]
        assert (disruption["action"], disruption["onPodConditions"][0]["type"]) == ("Count", "DisruptionTarget")
        ends = "FailIndex" if job["metadata"]["name"] == "try-worker" else "FailJob"
        assert (error["action"], error["onExitCodes"]["operator"]) == (ends, "NotIn")
        assert {128 + signal.SIGKILL, 128 + signal.SIGTERM} < set(error["onExitCodes"]["values"])
        assert not {1, 2, 127, 128} & set(error["onExitCodes"]["values"])
    shrinking = of_kind(manifest(capsys, *JOB, *VARIANTS["shrinks"], *TRAIN), "Job")["try-worker"]["spec"]
    assert shrinking["backoffLimitPerIndex"] == 0
    plain = of_kind(manifest(capsys, *JOB, *VARIANTS["plain"], *TRAIN), "Job")["try-server"]["spec"]
    assert (plain["backoffLimitPerIndex"], plain["maxFailedIndexes"]) == (0, 0)


def test_pods_have_no_rights_that_they_do_not_need(capsys: pytest.CaptureFixture[str]) -> None:
    for job in of_kind(manifest(capsys, *JOB, "-n", "1", *TRAIN), "Job").values():
        spec = job["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        limits = container_of(job)["securityContext"]
        assert limits == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_workers_that_come_later_have_keys(capsys: pytest.CaptureFixture[str]) -> None:
    found = manifest(capsys, *JOB, *VARIANTS["elastic"], *TRAIN)
    assert set(of_kind(found, "Secret")["try-worker"]["stringData"]) > {f"worker-{rank}.key" for rank in range(4)}
    job = of_kind(found, "Job")["try-worker"]
    assert job["spec"]["completions"] == 1
    assert {"name": "PSLITE_MAX_WORKERS", "value": "4"} in container_of(job)["env"]
    assert {item["metadata"]["namespace"] for item in found["items"]} == {"ml"}


def test_volumes_are_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    for job in of_kind(manifest(capsys, *JOB, *VARIANTS["checkpoints"], *TRAIN), "Job").values():
        assert {"name": "volume-0", "mountPath": "/data"} in container_of(job)["volumeMounts"]
        claim = {"name": "volume-0", "persistentVolumeClaim": {"claimName": "data"}}
        assert claim in job["spec"]["template"]["spec"]["volumes"]


def test_names_are_new_for_each_job(capsys: pytest.CaptureFixture[str]) -> None:
    names = [next(iter(of_kind(manifest(capsys, *IMAGE, "-n", "1", *TRAIN), "Service"))) for _ in range(2)]
    assert names[0] != names[1]
    assert all(name.startswith("pslite-") and name.endswith("-scheduler") for name in names)


# Keys


def test_secrets_are_in_secrets_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*JOB, "-n", "2", "-s", "2", *TRAIN]) == 0
    out, err = capsys.readouterr()
    told = "the Secrets among these objects have the private keys of the job: pass all on to `kubectl create -f -`"
    assert err == f"pslite: {told}\n"
    found = json.loads(out)
    files = {name: text for s in of_kind(found, "Secret").values() for name, text in s["stringData"].items()}
    secrets = [json.loads(text)["secret"] for name, text in files.items() if name != "roster.json"]
    assert len(set(secrets)) == 5
    rest = json.dumps([item for item in found["items"] if item["kind"] != "Secret"])
    assert not [secret for secret in secrets if secret in rest or json.dumps(secret)[1:-1] in rest]


@pytest.mark.parametrize("replicas", ["0", "1"])
def test_a_container_sees_its_own_keys(capsys: pytest.CaptureFixture[str], tmp_path: Path, replicas: str) -> None:
    """And with replicas a server that of the one whose place it may take."""
    found = manifest(capsys, *JOB, "-n", "2", "-s", "3", "--replicas", replicas, *TRAIN)
    cluster = Cluster(found, tmp_path)
    for role, job in cluster.jobs.items():
        spec = job.spec["template"]["spec"]
        assert spec["volumes"][0]["secret"]["defaultMode"] == 0o400
        for rank in range(job.spec["completions"]):
            seen = cluster.mount(spec, container_of({"spec": job.spec})["volumeMounts"][0], rank)
            own = {"roster.json", "scheduler.key" if role == "scheduler" else f"{role}-{rank}.key"}
            taken = {f"server-{(rank - 1) % 3}.key"} if role == "server" and replicas == "1" else set()
            assert {path.name for path in Path(seen).iterdir()} == own | taken


def test_without_keys_there_are_no_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*JOB, *VARIANTS["without keys"], *TRAIN]) == 0
    out, err = capsys.readouterr()
    assert "whoever can connect to the pods can read and change the model" in err
    assert of_kind(json.loads(out), "Secret") == {}
    assert '"--key"' not in out


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--launcher", "kubernetes"], "--launcher kubernetes needs --image IMAGE"),
        ([*IMAGE, "--name", "Upper"], "--name 'Upper' is no name for a Service and for Jobs: a letter first"),
        ([*IMAGE, "--name", "1st"], "a letter first, then a-z, 0-9 and -"),
        ([*IMAGE, "--name", "x-"], "the last no -"),
        ([*IMAGE, "--name", "x" * 41], "at most 40 characters"),
        ([*IMAGE, "--namespace", "a.b"], "--namespace 'a.b' is no name for one"),
        ([*IMAGE, "--max-restarts", "1"], "no agent is there to keep what a server has"),
        ([*IMAGE, "--max-restarts", "1", "--max-servers", "3"], "give --replicas 1 too, or no restarts and"),
        ([*IMAGE, "--checkpoint-dir", "/data"], "--checkpoint-dir /data would go with its pod: give --volume"),
        ([*IMAGE, "--checkpoint-dir", "/database", "--volume", "c:/data"], "would go with its pod"),
        ([*IMAGE, "--volume", "claim"], "--volume claim:: give CLAIM:/PATH"),
        ([*IMAGE, "-H", "node1"], "-H is not for --launcher kubernetes: Kubernetes chooses the nodes"),
        ([*IMAGE, "--log-dir", "runs"], "--log-dir is not for --launcher kubernetes: kubectl logs"),
        ([*IMAGE, "--dry-run"], "--dry-run is not for --launcher kubernetes: nothing is started anyway"),
    ],
)
def test_mistakes_are_named(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    assert cli.main([*arguments, "-n", "2", *TRAIN]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err


@pytest.mark.parametrize("option", ["--image", "--name", "--namespace", "--volume"])
def test_other_launchers_do_not_know_them(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit):
        parse(["-n", "1", option, "a:/b", "python"], "launch.py")
    assert f"{option} needs --launcher kubernetes" in capsys.readouterr().err


def test_what_is_not_for_kubernetes_are_options() -> None:
    options = parse([*IMAGE, "-n", "1", *TRAIN], "launch.py")
    assert all(hasattr(options, field) for field in kubernetes._NOT_THERE)


# What comes of them


STEPS = """
import os, pathlib, sys, time
import kvstore
kvstore.serve()
import numpy as np
kv = kvstore.create("dist_sync")
kv.set_optimizer(kvstore.optimizer.create("sgd", learning_rate=1.0))
kv.init("w", np.zeros(3))
w = np.zeros(3)
here = pathlib.Path(os.environ["NOTES"])
for step in range(kv.start_step, 20):
    if step == 10:
        (here / f"half-{kv.rank}").touch()
        while not (here / "go").exists():
            time.sleep(0.01)
    kv.push("w", np.full(3, -1.0))
    kv.pull("w", out=w)
    kv.step()
print("worker", kv.rank, "began with step", kv.start_step, "and has", w)
kv.close()
"""


@pytest.mark.processes
def test_a_job_trains(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With the same bits as on one host."""
    train = [str(ROOT / "examples" / "train_images.py"), "--kv-store", "dist_sync", "--steps", "20", "--save-weights"]
    found = manifest(capsys, *JOB, "-n", "2", "-s", "1", sys.executable, *train, str(tmp_path / "pods.npz"))
    with Cluster(found, tmp_path / "pods") as cluster:
        assert cluster.run() == dict.fromkeys(("scheduler", "server", "worker"), "Complete"), cluster.logs()
    here = launch("-n", "2", "-s", "1", sys.executable, *train, str(tmp_path / "here.npz"))
    assert here.returncode == 0, here.stderr
    assert (tmp_path / "pods.npz").read_bytes() == (tmp_path / "here.npz").read_bytes()


@pytest.mark.processes
@pytest.mark.parametrize("victim", ["scheduler", "server", "worker"])
def test_a_pod_that_is_killed_is_replaced_or_not_needed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, victim: str
) -> None:
    (tmp_path / "steps.py").write_text(STEPS)
    survives = ("-n", "2", "-s", "2", "--replicas", "1", "--max-restarts", "1")
    found = manifest(capsys, *JOB, *survives, sys.executable, str(tmp_path / "steps.py"))
    with Cluster(found, tmp_path / "pods", NOTES=str(tmp_path)) as cluster:
        halfway = [tmp_path / "half-0", tmp_path / "half-1"]
        wait_until(lambda: all(path.exists() for path in halfway), LONGEST, "ten steps")
        cluster.pod(victim).process.kill()
        (tmp_path / "go").touch()
        over = cluster.run()
    # A Job counts a server that did not come again as failed; that of the workers says how the training went.
    servers = "Failed" if victim == "server" else "Complete"
    assert over == {"scheduler": "Complete", "worker": "Complete", "server": servers}, cluster.logs()
    assert cluster.pod(victim).failures == (0 if victim == "server" else 1)
    assert cluster.logs().count("and has [40. 40. 40.]") == 2, cluster.logs()


@pytest.mark.processes
def test_a_program_that_fails_fails_its_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "fail.py").write_text("import kvstore; kvstore.serve(); kv = kvstore.create('dist_sync'); 1 / 0")
    survives = ("-n", "2", "-s", "2", "--replicas", "1", "--max-restarts", "3")
    found = manifest(capsys, *JOB, *survives, sys.executable, str(tmp_path / "fail.py"))
    with Cluster(found, tmp_path / "pods") as cluster:
        assert cluster.run() == dict.fromkeys(("scheduler", "server", "worker"), "Failed"), cluster.logs()
        # Nobody was started again, and no Job had to end the others.
        assert [pod.failures for job in cluster.jobs.values() for pod in job.pods] == [0] * 5
    assert "ZeroDivisionError" in cluster.logs("worker")
