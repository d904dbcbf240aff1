"""A Slurm of our own: munged, slurmctld, and a slurmd on each of several hosts, in a network of their own.

All its files are in one directory, and nothing of it listens elsewhere.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.harness import wait_until
from tests.launcher.launching import LONGEST, environment

from . import named_hosts
from .named_hosts import NamedHosts

#: apt-get install slurmctld slurmd slurm-client munge
NEEDS = (*named_hosts.NEEDS, "munged", "slurmctld", "slurmd", "srun", "salloc", "sbatch")

_CONFIG = """
ClusterName=test
SlurmctldHost=node1({controller})
SlurmUser=root
AuthInfo=socket={directory}/munge.socket
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_min_interval=10000,batch_sched_delay=0
GresTypes=gpu
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
PartitionName=all Nodes=ALL Default=YES
"""
_NODE = "NodeName={name} NodeAddr={address} CPUs={cpus} RealMemory=1000 Gres=gpu:2\n"
_GPUS = "NodeName={name} Name=gpu File=/dev/null\nNodeName={name} Name=gpu File=/dev/zero\n"


class Slurm:
    """The cluster; its users sit on ``node1``."""

    def __init__(self, hosts: NamedHosts) -> None:
        self._hosts, self._directory = hosts, hosts.directory
        places = {name: host.address for name, host in hosts.by_name.items()}
        nodes = "".join(_NODE.format(name=n, address=a, cpus=os.cpu_count()) for n, a in places.items())
        self._config = self._directory / "slurm.conf"
        self._config.write_text(_CONFIG.format(controller=places["node1"], directory=self._directory) + nodes)
        (self._directory / "gres.conf").write_text("".join(_GPUS.format(name=name) for name in places))

    def popen(self, *command: str, **env: str) -> subprocess.Popen[str]:
        """Start a client of Slurm, or what runs some."""
        return subprocess.Popen(
            self._hosts.within(*command),
            env=environment(SLURM_CONF=str(self._config), **env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, input: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run one to its end."""
        return subprocess.run(
            self._hosts.within(*command),
            env=environment(SLURM_CONF=str(self._config), **env),
            input=input,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )

    def batch(self, script: str, *options: str) -> str:
        """Run a script as a batch job to its end, and return Slurm's account of it."""
        job = self.run("sbatch", "--parsable", *options, input=script).stdout.strip()
        self.run("srun", "--quiet", f"--dependency=afterany:{job}", "true")  # unlike sbatch --wait it does not poll
        return self.run("scontrol", "show", "job", job).stdout

    @contextmanager
    def running(self) -> Iterator[None]:
        """Its daemons run."""
        with ExitStack() as stack:
            key = self._directory / "munge.key"
            key.write_bytes(secrets.token_bytes(128))
            key.chmod(0o400)
            socket = self._directory / "munge.socket"
            files = [f"--{name}-file={self._directory}/munge.{name}" for name in ("key", "log", "pid", "seed")]
            self._daemon(stack, ["munged", "--foreground", "--force", f"--socket={socket}", *files])
            wait_until(socket.exists, LONGEST, "munged's socket")
            self._daemon(stack, self._hosts.within("slurmctld", "-D", "-f", str(self._config)))
            for node in self._hosts.by_name:
                self._daemon(stack, self._hosts.within("slurmd", "-D", "-f", str(self._config), node=node))
            self.settle()
            yield

    def settle(self) -> None:
        """Wait until all nodes are idle: of a step whose srun was killed a daemon stays for 2 s."""
        idle = ["idle", str(len(self._hosts.by_name))]
        wait_until(lambda: self.run("sinfo", "-h", "-o", "%T %D").stdout.split() == idle, LONGEST, "idle nodes")

    def _daemon(self, stack: ExitStack, command: Sequence[str]) -> None:
        log = stack.enter_context((self._directory / "daemons.log").open("ab"))
        process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        stack.callback(process.terminate)


@contextmanager
def slurm(nodes: int) -> Iterator[Slurm]:
    """A Slurm of so many nodes, which are idle."""
    with named_hosts.named_hosts(nodes) as hosts:
        cluster = Slurm(hosts)
        with cluster.running():
            yield cluster
