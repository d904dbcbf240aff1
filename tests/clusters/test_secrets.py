"""What others on the hosts of a job could see of it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from .cluster import Cluster
from .machine import Machine

pytestmark = pytest.mark.processes

TOKEN = "correct-horse-battery-staple"
JOB = """
import logging, os
logging.basicConfig(level=logging.DEBUG)
os.environ["PS_VERBOSE"] = "2"
import kvstore, numpy
if os.environ["DMLC_ROLE"] != "worker":
    print("ready", flush=True)
kvstore.serve()
kv = kvstore.create("dist_sync")
kv.init("w", numpy.zeros(3)); kv.push("w", numpy.ones(3)); kv.pull("w")
assert os.environ["TOKEN"]
print("ready", flush=True)
import signal; signal.pause()
"""


def keys(machine: Machine) -> dict[str, str]:
    """The secrets that are on a host, by the names of their files."""
    files = list(machine.file("/tmp").glob("pslite-*/keys/*.key"))
    assert all(path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0 for path in files)
    return {path.name: json.loads(path.read_text())["secret"] for path in files}


def test_secrets_are_in_no_command_line_environment_or_log(cluster: Cluster) -> None:
    options = ("-n", 3, "-s", 2, "--replicas", 1, "-H", "node1,node2,node3", "--servers-on", "node1,node2")
    with cluster.launcher(
        *options, "--env", "TOKEN", "--log-dir", cluster.shared / "logs", sys.executable, "-c", JOB, TOKEN=TOKEN
    ) as launcher:
        launcher.said("ready", 6)
        found = [keys(machine) for machine in cluster.machines]
        assert [sorted(names) for names in found] == [
            [],
            ["scheduler.key", "server-0.key", "server-1.key", "worker-0.key"],  # with the key of the server it backs up
            ["server-0.key", "server-1.key", "worker-1.key"],
            ["worker-2.key"],
        ]
        secrets = {secret.encode() for names in found for secret in names.values()}
        assert len(secrets) == 6
        for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
            for name in ("cmdline", "environ"):
                seen = _read(Path(f"/proc/{pid}/{name}"))
                assert not [secret for secret in secrets if secret in seen], (pid, name)
                assert name == "environ" or TOKEN.encode() not in seen, pid
        launcher.popen.send_signal(signal.SIGTERM)
        assert launcher.wait() == 143
    logs = [path.read_bytes() for path in (cluster.shared / "logs").rglob("*.log")]
    assert any(b"DEBUG" in log for log in logs), logs
    logs += [machine.log.encode() for machine in cluster.machines]
    logs.append((launcher.stdout + launcher.stderr).encode(errors="surrogateescape"))
    assert not [log for log in logs for secret in (*secrets, TOKEN.encode()) if secret in log]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""
