"""Processes that a signal ends, and that are started again: whole jobs, as a user runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import is_running, wait_until
from tests.launcher.launching import LAUNCH, LONGEST, NOTE_PID, environment, kill_all, launch, launched, pids
from tests.launcher.test_jobs import environments, last_report

pytestmark = pytest.mark.processes

PY = sys.executable
PRELUDE = """
import json, os, signal, sys, time
who = os.environ["DMLC_ROLE"] + os.environ.get("DMLC_WORKER_ID", "")
life = int(os.environ.get("PSLITE_RESTARTS", "0"))
directory = os.environ["PSLITE_JOB_DIR"]

def die(signum=signal.SIGKILL):
    os.kill(os.getpid(), signum)

def table():
    return json.load(open(directory + "/processes.json"))

def wait_for(condition):
    while not condition():
        time.sleep(0.01)
"""


def restarted(stderr: str) -> list[str]:
    """The lines about restarts, without pids."""
    return [re.sub(r" on localhost \(pid \d+\)", "", line) for line in stderr.splitlines() if "; restart " in line]


def test_a_process_of_every_role_is_started_again_and_the_job_ends_well() -> None:
    code = PRELUDE + (
        "print(f'life {life} of', os.environ['PSLITE_MAX_RESTARTS'])\n"
        "if who == 'worker1' and life < 2: die()\n"
        "if who in ('scheduler', 'server') and life < 1: die(signal.SIGSEGV)\n"
    )
    done = launch("-n", "2", "-s", "1", "--max-restarts", "2", PY, "-c", code)
    assert done.returncode == 0, done.stderr
    lives = {"scheduler": 2, "server 0": 2, "worker 0": 1, "worker 1": 3}
    expected = [f"[{label}]".ljust(12) + f"life {n} of 2" for label, count in lives.items() for n in range(count)]
    assert sorted(done.stdout.splitlines()) == sorted(expected)
    assert sorted(restarted(done.stderr)) == [
        "pslite: scheduler died: signal 11 (SIGSEGV); restart 1 of 2",
        "pslite: server 0 died: signal 11 (SIGSEGV); restart 1 of 2",
        "pslite: worker 1 died: signal 9 (SIGKILL); restart 1 of 2",
        "pslite: worker 1 died: signal 9 (SIGKILL); restart 2 of 2",
    ]
    assert last_report(done.stderr) == [
        "pslite: ended well after 4 restarts: scheduler (1), server 0 (1), worker 1 (2)"
    ]


def test_one_death_more_than_there_are_restarts_ends_the_job() -> None:
    code = PRELUDE + "print(f'life {life}', file=sys.stderr)\nif who == 'worker0': die()\ntime.sleep(60)"
    done = launch("-n", "1", "-s", "1", "--max-restarts", "1", PY, "-c", code)
    assert done.returncode == 137
    report = last_report(done.stderr)
    assert "worker 0 on localhost" in report[0]
    assert report[0].endswith("; gave up after 1 restart")
    assert report[-3:] == ["  last line of its stderr:", "    life 1", "  1 restart: worker 0 (1)"]


def test_an_exit_code_ends_the_job_at_once() -> None:
    code = PRELUDE + "if who == 'worker0': sys.exit(5)\ntime.sleep(60)"
    done = launch("-n", "1", "-s", "1", "--max-restarts", "3", PY, "-c", code)
    assert done.returncode == 5
    assert "restart" not in done.stderr


def test_what_a_process_left_about_an_error_is_not_its_successors() -> None:
    code = PRELUDE + (
        "if who == 'worker0' and life == 0:\n"
        "    record = {'time': 1, 'error': 'an old story', 'caused_by': None}\n"
        "    json.dump(record, open(directory + '/error-worker-0.json', 'w'))\n"
        "    die()\n"
        "if who == 'worker0': sys.exit(3)\n"
        "time.sleep(60)"
    )
    done = launch("-n", "1", "-s", "1", "--max-restarts", "1", PY, "-c", code)
    assert done.returncode == 3
    assert "an old story" not in done.stderr


def test_what_a_process_started_ends_before_its_successor_goes_on(tmp_path: Path) -> None:
    code = PRELUDE + (
        "import subprocess\n"
        "note = os.environ['NOTE']\n"
        "if who == 'worker0' and life == 0:\n"
        "    helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "    open(note, 'w').write(str(helper.pid))\n"
        "    die()\n"
        "if who == 'worker0': wait_for(lambda: not os.path.exists('/proc/' + open(note).read()))\n"
    )
    done = launch("-n", "1", "-s", "1", "--max-restarts", "1", PY, "-c", code, NOTE=str(tmp_path / "helper"))
    assert done.returncode == 0, done.stderr


def test_the_scheduler_can_read_who_was_started_again() -> None:
    code = PRELUDE + (
        "if who == 'worker0' and life == 0: die()\n"
        "if who == 'worker0': sys.exit(0)\n"
        "if who == 'scheduler':\n"
        "    exits = []\n"
        "    def ended():\n"
        "        line = table()[-1]\n"
        "        exits.append(line['exit'])\n"
        "        return line['exit'] is not None\n"
        "    wait_for(ended)\n"
        "    print(json.dumps([set(exits) == {None, 0} or exits, [line['restarts'] for line in table()]]))\n"
    )
    done = launch("-n", "1", "-s", "1", "--max-restarts", "1", "--no-prefix", PY, "-c", code)
    assert done.returncode == 0, done.stderr
    known, restarts = json.loads(done.stdout)
    assert known in (True, [0]), "its death was shown although it was started again"
    assert restarts == [0, 0, 1]


LOST = """
def worker():
    return next([p["role"], p["rank"], p["pid"]] for p in table() if p["role"] == "worker")

if who == "worker0" and life == 0:
    os.kill(os.getpid(), signal.SIGSTOP)
    sys.exit("woken, not killed")
if who == "scheduler":
    wait_for(lambda: len(table()) == 3 and worker()[2])
    role, rank, pid = worker()
    wait_for(lambda: open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "T")
    with open(directory + "/lost.tmp", "w") as file:
        json.dump([["worker", 1, pid], ["worker", 0, os.getpid()], [role, rank, pid]], file)
    os.rename(file.name, directory + "/lost.json")
    wait_for(lambda: table()[-1]["restarts"] == 1)
"""


def test_a_stopped_process_that_the_scheduler_gave_up_is_killed_and_started_again() -> None:
    done = launch("-n", "1", "-s", "1", "--max-restarts", "1", PY, "-c", PRELUDE + LOST)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("pslite: ")]
    assert len(lines) == 3
    assert re.fullmatch(r"pslite: worker 0 on localhost \(pid \d+\) does not answer: killing it", lines[0])
    assert restarted(done.stderr) == ["pslite: worker 0 died: signal 9 (SIGKILL); restart 1 of 1"]


KEEP = """
from pslite import Config
from pslite.van.shared import Keeper
from kvstore.server.orders import Orders
orders = Orders.from_config(Config.from_env())
assert (orders is not None) is (who == "server")
if who == "server":
    order = orders.next()
    assert (order.verb, order.rank, order.restarts) == ("adopt", 0, life), order
    keeper = Keeper.from_config(Config(keeper_fd=order.keeper_fd))
    found = keeper.take()
    if life == 0:
        assert found == {}
        fd = os.memfd_create("table")
        os.write(fd, b"0")
        for number in range(500):
            keeper.keep(f"piece-{number}", fd)
        for number in range(1, 499):
            keeper.drop(f"piece-{number}")
    else:
        assert sorted(found) == ["piece-0", "piece-499"], sorted(found)
        fd = found["piece-499"]
        assert os.path.sameopenfile(fd, found["piece-0"])
        os.write(fd, str(life).encode())
        os.pread(fd, 9, 0) == "0123"[: life + 1].encode() or sys.exit("other memory")
    if life < 3:
        die()
    print(os.pread(fd, 9, 0).decode())
"""


def test_a_servers_memory_outlives_it() -> None:
    done = launch("-n", "1", "-s", "1", "--max-restarts", "3", "--no-prefix", PY, "-c", PRELUDE + KEEP)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0123\n"


MEET = """
import zmq
context = zmq.Context()
if who == "scheduler":
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.USE_FD, int(os.environ["PSLITE_ROOT_FD"]))
    router.bind(os.environ["PSLITE_ROOT"])
    while True:
        identity, text = router.recv_multipart()
        router.send_multipart([identity, b"%s to life %d" % (text, life)])
        if text == b"die":
            wait_for(lambda: False)
        if text == b"bye":
            break
    context.destroy(linger=1000)
if who == "worker0":
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.IDENTITY, b"me")
    dealer.setsockopt(zmq.RECONNECT_IVL, 50)
    dealer.connect(os.environ["PSLITE_ROOT"])
    for _ in range(2):
        dealer.send(b"die")
        print(dealer.recv().decode())
        os.kill(table()[0]["pid"], signal.SIGKILL)
        before = table()[0]["restarts"]
        wait_for(lambda: table()[0]["restarts"] != before)
    dealer.send(b"bye")
    print(dealer.recv().decode())
    context.destroy(linger=0)
"""


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_peers_reach_the_next_scheduler_at_the_same_address(transport: str) -> None:
    """By real ZeroMQ: the same routing id connects to the same socket, whose owner has been killed."""
    arguments = ["-n", "1", "-s", "1", "--max-restarts", "2", "--no-prefix", PY, "-c", PRELUDE + MEET]
    done = launch(*arguments, PSLITE_TRANSPORT=transport)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["die to life 0", "die to life 1", "bye to life 2"]


LOOP = NOTE_PID + (
    "if role == 'worker' and rank == '0':\n"
    "    print('again')\n"
    "    os.kill(os.getpid(), signal.SIGSEGV)\n"
    "time.sleep(60)\n"
)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_job_ends_while_a_process_is_started_again_and_again(
    notes: Path, short_tmp: Path, signum: signal.Signals, status: int
) -> None:
    arguments = ["-n", "2", "-s", "1", "--max-restarts", "1000000", PY, "-c", LOOP]
    with launched(*arguments, PIDS=str(notes), TMPDIR=str(short_tmp)) as launcher:
        found = pids(notes, 4)
        try:
            assert launcher.stdout is not None
            for _ in range(3):
                launcher.stdout.readline()
            launcher.send_signal(signum)
            launcher.communicate(timeout=LONGEST)
            assert launcher.returncode == status
            wait_until(lambda: not list(short_tmp.iterdir()), LONGEST, "the removal of the job's directory")
            last = pids(notes, 4)
            assert not any(map(is_running, [*found.values(), *last.values()]))
        finally:
            kill_all(found)


def test_a_job_without_restarts_has_nothing_to_do_with_them() -> None:
    for env in environments(PSLITE_RESTARTS="1", PSLITE_MAX_RESTARTS="1", PSLITE_AGENT_FD="0").values():
        assert not {"PSLITE_RESTARTS", "PSLITE_MAX_RESTARTS", "PSLITE_AGENT_FD"} & env.keys()


def test_processes_have_the_users_limit_of_descriptors() -> None:
    """The agent raises its own."""
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    command = [*LAUNCH, "-n", "1", "-s", "1", "--max-restarts", "1", "--no-prefix", PY, "-c", code]
    limited = ["sh", "-c", 'ulimit -Sn 333; exec "$@"', "sh", *command]
    done = subprocess.run(limited, env=environment(), capture_output=True, text=True, timeout=LONGEST)
    assert done.stdout == "333\n" * 3


def test_a_log_file_goes_on(tmp_path: Path) -> None:
    code = PRELUDE + "print(f'life {life}')\nif who == 'worker0' and life == 0: die()\n"
    done = launch("-n", "1", "-s", "1", "--max-restarts", "1", "--log-dir", str(tmp_path / "runs"), PY, "-c", code)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "runs" / "latest").resolve() / "worker-0" / "stdout.log"
    assert log.read_text() == "life 0\nlife 1\n"


def test_a_command_that_has_vanished_ends_the_job(tmp_path: Path) -> None:
    script = tmp_path / "once.sh"
    script.write_text(f"#!/bin/sh\n[ $DMLC_ROLE = worker ] || exec sleep 60\nrm {script}\nkill -9 $$\n")
    script.chmod(0o755)
    done = launch("-n", "1", "-s", "1", "--server-command", "sleep 60", "--max-restarts", "1", str(script))
    assert done.returncode == 127
    assert last_report(done.stderr)[0] == (
        f"pslite: worker 0 on localhost could not be started: No such file or directory: {script}"
    )
    assert not os.path.exists(script)
