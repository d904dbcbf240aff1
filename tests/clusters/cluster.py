"""A head, at which the user sits, and nodes to which this user's key opens ssh, all on one switch."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.harness import wait_until
from tests.network.hosts import Network
from tests.system.jobs import took

from .machine import HOME, LONGEST, PORTS, ROOT, Machine, environment, make_key

#: What these hosts need of this one: apt-get install iproute2 nftables util-linux openssh-client openssh-server rsync.
NEEDS = ("root", "ip", "nft", "unshare", "nsenter", "setpriv", "ssh", "sshd", "ssh-keygen", "rsync")
LAUNCH = (sys.executable, str(ROOT / "tools" / "launch.py"))


class Cluster:
    """``head`` and ``nodes``, booted. ``with Cluster(directory, 3) as cluster``; at the end all of it is gone.

    Their names, node1 and so on, are known everywhere. sshd listens on ports 22 and 2222. The user's configuration,
    ``~/.ssh/config`` on the head, knows node1 also as ``alias``. The directory ``shared`` is everybody's.
    """

    def __init__(self, directory: Path, nodes: int) -> None:
        self._directory = directory
        self.shared = directory / "shared"
        self.shared.mkdir()
        self._open = ExitStack()
        self.network = self._open.enter_context(Network())
        names = ["head", *(f"node{number}" for number in range(1, nodes + 1))]
        self.machines = []
        for name, host in zip(names, self.network.hosts(len(names)), strict=True):
            (directory / name).mkdir()
            self.machines.append(Machine(host, name, directory / name, self.shared, own_pids=name != "head"))
        self.head, *self.nodes = self.machines
        self._user = make_key(directory / "id_ed25519")
        secret = (directory / "id_ed25519").read_text()
        try:
            for machine in self.machines:
                machine.start(self._files(secret if machine is self.head else ""))
                self._open.callback(machine.close)
        except BaseException:
            self._open.close()
            raise

    def _files(self, secret: str) -> dict[str, str]:
        names = {machine: (machine.name, machine.address, machine.address6) for machine in self.machines}
        hosts = "".join(f"{m.address} {m.name}\n{m.address6} {m.name}6\n" for m in self.machines)
        known = "".join(
            f"{','.join(n if port == 22 else f'[{n}]:{port}' for n in (*names[m], m.name + '6'))} {m.public_key}\n"
            for m in self.machines
            for port in PORTS
        )
        config = f"Host alias\n    HostName {self.nodes[0].address}\n    Port {PORTS[1]}\n"
        files = {
            "hosts": f"127.0.0.1 localhost\n::1 localhost\n{hosts}",
            "home/.ssh/authorized_keys": self._user + "\n",
            "home/.ssh/known_hosts": known,
            "home/.ssh/config": config,
        }
        return files | ({"home/.ssh/id_ed25519": secret} if secret else {})

    def launcher(self, *arguments: object, cwd: str | Path = "/tmp", **env: str) -> Launcher:
        """``pslite-launch ARGUMENTS``, typed on the head."""
        command = self.head.within(*LAUNCH, *map(str, arguments), cwd=cwd)
        return Launcher(command, Path(tempfile.mkdtemp(prefix="launcher-", dir=self._directory)), **env)

    def launch(self, *arguments: object, cwd: str | Path = "/tmp", **env: str) -> Launcher:
        """The same, to its end."""
        with self.launcher(*arguments, cwd=cwd, **env) as launcher:
            launcher.wait()
            return launcher

    @contextmanager
    def unplugged(self, machine: Machine) -> Iterator[None]:
        """A host without its cable."""
        self.network.plug(machine.host, False)
        try:
            yield
        finally:
            self.network.plug(machine.host, True)
            for each in self.machines:  # whom they could not find they would not look for at once
                each.host.run("ip", "neighbour", "flush", "dev", "eth0")

    @contextmanager
    def no_login(self, machine: Machine) -> Iterator[None]:
        """A host that does not take the user's key."""
        keys = machine.file(HOME / ".ssh" / "authorized_keys")
        keys.write_text("")
        try:
            yield
        finally:
            keys.write_text(self._user + "\n")

    def traces(self, only: Machine | None = None) -> list[str]:
        """What jobs have left anywhere, or on one host."""
        machines = [only] if only else self.machines
        return [f"{machine.name}: {trace}" for machine in machines for trace in machine.traces()]

    def wait_until_clean(self, since: float, what: str, only: Machine | None = None) -> None:
        """Wait until nothing of a job is left anywhere, or on one host, and show how long it took."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.traces(only), LONGEST)
        assert not self.traces(only), self.traces(only)
        took(since, what)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


class Launcher:
    """A launcher that runs on the head; killed at the end if it still does. What it writes goes to files."""

    def __init__(self, command: Sequence[str], directory: Path, **env: str) -> None:
        self._out, self._err = directory / "stdout", directory / "stderr"
        with open(self._out, "wb") as stdout, open(self._err, "wb") as stderr:
            self.popen = subprocess.Popen(
                command,
                env=environment(**env),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="surrogateescape")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="surrogateescape")

    @property
    def report(self) -> list[str]:
        """The lines in which the launcher itself says something, and what follows the last."""
        lines = self.stderr.splitlines()
        last = max((n for n, line in enumerate(lines) if line.startswith("pslite:")), default=0)
        return [line for n, line in enumerate(lines) if n >= last or line.startswith("pslite:")]

    def said(self, text: str, times: int = 1) -> None:
        """Return when a text was written to stdout, so often."""
        self._wait_until(lambda: self.stdout.count(text) >= times, f"{times} times {text!r}")

    def told(self, text: str) -> None:
        """Return when a text was written to stderr."""
        self._wait_until(lambda: text in self.stderr, repr(text))

    def _wait_until(self, seen: Callable[[], bool], what: str) -> None:
        with contextlib.suppress(AssertionError):
            wait_until(lambda: seen() or self.status is not None, LONGEST)
        assert seen(), f"{what} is not in the output of {self}"

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.popen.poll()

    def wait(self) -> int:
        """Its exit status, when it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.popen.wait(LONGEST)
        raise AssertionError(f"it has not ended in {LONGEST} s: {self}")

    def __repr__(self) -> str:
        return f"<launcher status={self.status}\n{self.stdout}{self.stderr}>"

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait()
