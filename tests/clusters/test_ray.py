"""Jobs on a real Ray cluster of this host."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.carriers import ray
from launcher.errors import UsageError
from launcher.options import parse
from tests.clusters.ray_cluster import need_ray, ray_cluster
from tests.harness import is_running, wait_until
from tests.launcher.launching import LAUNCH, NOTE_PID, SLEEP, children, kill_all, pids
from tests.system.jobs import EXAMPLES, environment

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(120)]

LONGEST = 90  # seconds: far above what a job takes here, so that a hang is a failure

#: A job of two workers. Worker 1 leaves its pid and waits for its end, in its first life.
ONE_DIES = (
    NOTE_PID
    + """
import kvstore
kvstore.serve()
again = os.environ.get("PSLITE_RESTARTS", "0")
if role + rank + again == "worker10":
    time.sleep(60)
import numpy as np
kv = kvstore.create("dist_sync")
kv.init("w", np.zeros(3))
kv.push("w", np.full(3, kv.rank + 1.0))
out = np.empty(3)
kv.pull("w", out=out)
print("sum", out[0], "life", again)
"""
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """That of a running cluster."""
    need_ray()
    with ray_cluster() as found:
        yield found


def on_ray(*arguments: object) -> list[str]:
    return [*LAUNCH, "--launcher", "ray", *map(str, arguments)]


def launch(address: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        on_ray(*arguments), env=environment(RAY_ADDRESS=address), capture_output=True, text=True, timeout=LONGEST
    )


Running = tuple[subprocess.Popen[str], dict[str, int]]


@contextmanager
def running(address: str, notes: Path, code: str, *options: object) -> Iterator[Running]:
    """A job of two workers and a server, and the pids of its four processes."""
    command = on_ray("-n", 2, "-s", 1, "--env", f"PIDS={notes}", *options, sys.executable, "-c", code)
    env = environment(RAY_ADDRESS=address)
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        try:
            found = pids(notes, 4)
            yield launcher, found
        finally:
            launcher.kill()
            kill_all({note.name: int(note.read_text()) for note in notes.iterdir()})


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where processes leave their pids."""
    path = tmp_path / "pids"
    path.mkdir()
    return path


def actor_of(pid: int) -> int:
    """The process of Ray's that holds the other end of the stdin of this process's agent."""
    agent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    pipe = os.readlink(f"/proc/{agent}/fd/0")
    numbers = map(int, filter(str.isdigit, os.listdir("/proc")))
    (found,) = (number for number in numbers if number != agent and holds(number, pipe))
    return found


def holds(pid: int, pipe: str) -> bool:
    try:
        return any(os.readlink(f"/proc/{pid}/fd/{name}") == pipe for name in os.listdir(f"/proc/{pid}/fd"))
    except OSError:  # it has ended, or has closed that one
        return False


def test_it_trains_to_the_same_accuracy_as_one_process(address: str, tmp_path: Path) -> None:
    script, alone, cluster = str(EXAMPLES / "train_images.py"), tmp_path / "alone.json", tmp_path / "cluster.json"
    subprocess.run([sys.executable, script, "--json", str(alone)], env=environment(), check=True, capture_output=True)
    options = ("--kv-store", "dist_sync", "--json", str(cluster))
    done = launch(address, "-n", 4, "-s", 2, sys.executable, script, *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(cluster.read_text())
    assert (result["workers"], result["servers"]) == (4, 2)
    assert result["accuracy"] >= json.loads(alone.read_text())["accuracy"] - 0.01


def test_the_status_of_the_worker_that_fails_is_the_launchers(address: str) -> None:
    odd = "$(id) 'a' \"b\"\n-- ;*"
    code = "import os, sys, time; rank = int(os.environ['LOCAL_RANK']); time.sleep(60 - 60 * rank)\n"
    code += "print(f'{sys.argv[1:]} {rank}'); sys.exit(7)"
    done = launch(address, "-n", 2, "-s", 1, "--server-command", "sleep 60", sys.executable, "-c", code, odd)
    assert done.returncode == 7
    assert f"pslite: worker 1 on {os.uname().nodename} (pid " in done.stderr and "failed: exit code 7" in done.stderr
    assert done.stdout.splitlines() == [f"[worker 1]  {[odd]} 1"]


@pytest.mark.parametrize("victim", ["process", "actor"])
def test_a_worker_that_was_killed_is_started_again(address: str, notes: Path, victim: str) -> None:
    with running(address, notes, ONE_DIES, "--max-restarts", 1) as (launcher, found):
        first = found["worker1"]
        os.kill(first if victim == "process" else actor_of(first), signal.SIGKILL)
        stdout, stderr = launcher.communicate(timeout=LONGEST)
    assert launcher.returncode == 0, stderr
    assert not is_running(first)
    assert {"[worker 0]  sum 3.0 life 0", "[worker 1]  sum 3.0 life 1"} == set(stdout.splitlines())
    assert "ended well after 1 restart: worker 1 (1)" in stderr
    assert ("the actor of worker 1" in stderr) == (victim == "actor")


def test_the_death_of_the_servers_actor_ends_the_job(address: str, notes: Path) -> None:
    with running(address, notes, SLEEP, "--max-restarts", 1) as (launcher, found):
        os.kill(actor_of(found["server0"]), signal.SIGKILL)
        _, stderr = launcher.communicate(timeout=LONGEST)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert "pslite: server 0 on " in stderr and "the actor of server 0" in stderr


@pytest.mark.parametrize("victim", ["launcher", "driver"])
def test_nothing_survives(address: str, notes: Path, victim: str) -> None:
    with running(address, notes, SLEEP) as (launcher, found):
        (driver,) = children(launcher.pid)
        actors = [actor_of(pid) for pid in found.values()]
        os.kill(launcher.pid if victim == "launcher" else driver, signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, [driver, *found.values()])), 5, "the end of all processes")
        wait_until(lambda: not any(map(is_running, actors)), 5, "the end of all actors")
        assert launcher.wait(LONGEST) == (-signal.SIGKILL if victim == "launcher" else 1)


def test_where_no_cluster_is_the_launcher_says_so() -> None:
    need_ray()
    done = launch("127.0.0.1:1", "-n", 1, "true")
    assert done.returncode == 1
    assert "no Ray cluster" in done.stderr and "ray start --head" in done.stderr


def test_where_ray_is_not_installed_the_launcher_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'pslite\[ray\]'"):
        ray.hosts(parse(["-n", "1", "true"], "x"), {})


def test_check_looks_at_the_nodes(address: str) -> None:
    done = launch(address, "--check", "-n", 1, "--chdir", "/nowhere")
    assert done.returncode == 1
    assert done.stdout.startswith("ray  problem  python 3.") and "; reached at " in done.stdout
    assert done.stdout.splitlines()[1:] == [f"     - {os.uname().nodename}: there is no directory /nowhere"]
