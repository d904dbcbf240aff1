"""What other users of a host can see of a job, and what importing does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pslite import Config, Postoffice
from pslite.errors import ConfigError
from tests.system.jobs import environment, launch

JOB = """
import json, logging, os, pathlib, sys
logging.basicConfig(level=logging.DEBUG)
os.environ["PS_VERBOSE"] = "2"
import kvstore, numpy as np
file = os.environ["PSLITE_KEY_FILE"]
secret = json.loads(pathlib.Path(file).read_text())["secret"].encode()
seen = b"".join(pathlib.Path("/proc/self", name).read_bytes() for name in ("cmdline", "environ"))
parent = pathlib.Path("/proc", str(os.getppid()), "cmdline").read_bytes()
sys.stderr.write(f"own key {pathlib.Path(file).name} {secret not in seen + parent}\\n")
with open(os.path.join(os.environ["SECRETS"], pathlib.Path(file).name), "wb") as out:
    out.write(secret)
kv = kvstore.create("dist_sync")
kv.init("w", np.zeros(3)); kv.push("w", np.ones(3)); kv.pull("w")
sys.stderr.write(f"{kv!r}\\n")
kv.close()
"""


@pytest.mark.processes
def test_a_launched_job_shows_no_secret(tmp_path: Path) -> None:
    """Not in command lines, environments, or anything that it prints with all there is to log."""
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "secrets").mkdir()
    done = launch("-n", 2, "-s", 1, sys.executable, tmp_path / "job.py",
                  PSLITE_TRANSPORT="tcp", SECRETS=str(tmp_path / "secrets"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    secrets = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert sorted(secrets) == ["scheduler.key", "server-0.key", "worker-0.key", "worker-1.key"]
    assert len(set(secrets.values())) == 4
    for name, secret in secrets.items():
        assert f"own key {name} True" in done.stderr
        assert secret not in done.stdout + done.stderr


@pytest.mark.processes
def test_without_encryption_there_are_no_keys_and_it_is_said(tmp_path: Path) -> None:
    code = "import os; print('key', os.environ.get('PSLITE_KEY_FILE'))"
    done = launch("-n", 1, "-s", 1, sys.executable, "-c", code, PSLITE_TRANSPORT="tcp", PSLITE_SECURITY="none")
    assert done.stdout.count("key None") == 3
    assert "PSLITE_SECURITY=none: whoever can connect to these hosts" in done.stderr


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o777])
def test_a_job_directory_that_others_can_enter_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job").chmod(mode)
    with pytest.raises(ConfigError, match=r"PSLITE_JOB_DIR.*others can enter it.*chmod 700"):
        Postoffice(Config(role="worker", root=f"ipc://{tmp_path}/job/s", job_dir=str(tmp_path / "job")))


@pytest.mark.processes
def test_importing_does_nothing() -> None:
    """MXNet turns a process into a server when it is imported with DMLC_ROLE set."""
    code = (
        "import os, threading, json\n"
        "before = set(os.listdir('/proc/self/fd'))\n"
        "import pslite, kvstore\n"
        "sockets = [os.readlink(f'/proc/self/fd/{fd}') for fd in set(os.listdir('/proc/self/fd')) - before"
        " if os.path.lexists(f'/proc/self/fd/{fd}')]\n"
        "print(json.dumps([threading.active_count(), [s for s in sockets if 'socket' in s]]))"
    )
    place = {"DMLC_ROLE": "server", "DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": "9"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(**place), capture_output=True, text=True, timeout=40
    )
    assert json.loads(done.stdout) == [1, []], done.stderr
