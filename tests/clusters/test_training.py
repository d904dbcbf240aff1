"""Jobs over several hosts train as those on one do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kvstore import training

from .cluster import Cluster
from .machine import PORTS

pytestmark = pytest.mark.processes

STORE = "import kvstore, numpy; kvstore.serve(); kv = kvstore.create('dist_sync'); kv.init('w', numpy.zeros(3)); "
STORE += "kv.push('w', numpy.ones(3)); print('pulled', kv.pull('w')[0], flush=True); kv.close()"


def trained(directory: Path) -> list[dict[str, bytes]]:
    """The weights of each worker."""
    found = []
    for path in sorted(directory.iterdir()):
        with np.load(path) as weights:
            found.append({name: weights[name].tobytes() for name in weights.files})
    return found


def test_the_weights_have_the_same_bits_as_on_one_host(cluster: Cluster) -> None:
    one, several = cluster.shared / "one", cluster.shared / "several"
    hosts = cluster.shared / "hosts"
    hosts.write_text(
        "# three hosts, and four ways to write them\n\n"
        f"alias slots=1  # node1, as ~/.ssh/config says\n"
        f"root@{cluster.nodes[1].address} slots=2\n"
        f"{cluster.nodes[2].address6}   slots=4 port={PORTS[1]}\n"
    )
    for where, options in ((one, ()), (several, ("-H", hosts))):
        where.mkdir()
        done = cluster.launch("-n", 4, "-s", 2, *options, sys.executable, training.__file__, "sgd", where)
        assert done.status == 0, done
    assert trained(several) == trained(one)
    assert len(trained(one)) == 4 and trained(one)[0] == trained(one)[3]


@pytest.mark.parametrize("hosts", ["[fd77::2],[fd77::3]", "localhost,node1", "node1,localhost"])
def test_hosts_of_every_kind(cluster: Cluster, hosts: str) -> None:
    """Reached by IPv6; and the launcher's own, as the scheduler's host and as another."""
    done = cluster.launch("-n", 2, "-s", 2, "-H", hosts, sys.executable, "-c", STORE)
    assert done.status == 0, done
    assert done.stdout.count("pulled 2.0") == 2, done
