"""Server processes that come while a job runs: whole jobs, whose servers serve nothing."""

from __future__ import annotations

import sys

import pytest

from tests.launcher.launching import launch
from tests.launcher.test_restarts import PRELUDE

pytestmark = pytest.mark.processes

ASK = PRELUDE + """
def scale(servers):
    from pathlib import Path
    from launcher.control import ask
    from launcher.errors import UsageError
    try:
        return ask(Path(directory), {"servers": servers}, 20)
    except UsageError as error:
        return error

if who == "worker0":
    print([(line["rank"], line["pid"] == os.getpid()) for line in table() if line["role"] == "server"])
    print(scale(2))
    print(scale(4))
    open(directory + "/done", "w").close()
elif os.environ.get("DMLC_SERVER_ID") == "1":
    die() if os.environ["HOW"] == "signal" else sys.exit(3)
else:
    wait_for(lambda: os.path.exists(directory + "/done"))
"""


@pytest.mark.parametrize(("how", "what"), [("exit", "exit code 3"), ("signal", "signal 9")])
def test_a_server_that_ends_before_it_serves_harms_nobody(how: str, what: str) -> None:
    options = ["-n", "1", "-s", "1", "--max-servers", "3", "--max-restarts", "1", "--no-prefix"]
    done = launch(*options, sys.executable, "-c", ASK, HOW=how)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[(0, False), (1, False), (2, False)]",
        f"server 1 ended before it could serve: {what}",
        "4 servers: this job has 3 shards: give 1 to 3, or start it with another --max-servers",
    ]
    assert f"ended: {what}; it had no shard" in done.stderr
    assert "restart" not in done.stderr
