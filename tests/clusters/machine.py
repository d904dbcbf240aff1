"""Hosts as users have them: a network, processes, /tmp, a home and a name of their own, and a real sshd.

What a host sees of this machine is its programs, and the Python and the packages that run the tests. A host ends with
its first process, and its files with that: nothing is left of a test that was killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.harness import wait_until
from tests.launcher.launching import children
from tests.network.hosts import PREFIX, Host

ROOT = Path(__file__).resolve().parents[2]
PORTS = (22, 2222)  # sshd listens on both
PREFIX6 = "fd77::"
HOME = Path("/run/home")
LONGEST = 30.0  # seconds: far above what anything here takes, so that a hang is a failure

#: $1: the host's name. $2: its files, for /run. What follows is below /tmp and stays there; nothing else does.
_BOOT = """\
set -eu
mount --make-rprivate /
hostname "$1"
mount -t tmpfs -o mode=755 tmpfs /run
cp -r "$2/." /run
mkdir /run/sshd /run/old
mount --bind /run/passwd /etc/passwd
mount --bind /run/shadow /etc/shadow
mount --bind /run/hosts /etc/hosts
mount --rbind /tmp /run/old
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
shift 2
for path do
    mkdir -p "$path"
    mount --bind "/run/old${path#/tmp}" "$path"
done
umount -l /run/old
[ $$ -ne 1 ] || mount -t proc proc /proc
exec "$(PATH=$PATH:/usr/sbin command -v sshd)" -D -e -f /run/sshd_config
"""
_SSHD_CONFIG = "".join(f"Port {port}\n" for port in PORTS) + (
    "HostKey /run/host_key\n"
    "PidFile none\n"
    "UsePAM no\n"
    "PasswordAuthentication no\n"
    "KbdInteractiveAuthentication no\n"
    "PermitRootLogin prohibit-password\n"
    "LogLevel VERBOSE\n"
)


class Machine:
    """A host of a cluster. ``directory`` is empty; what its sshd says is there. ``shared``: one that all hosts have.

    ``own_pids``: its processes have numbers of their own, so that they mean nothing elsewhere. Without it a process
    that a test starts here has the pid that the test sees, and hears its signals.
    """

    def __init__(self, host: Host, name: str, directory: Path, shared: Path, own_pids: bool) -> None:
        self.host, self.name = host, name
        self._kept = _below_tmp(shared, ROOT, sys.prefix, sys.base_prefix, *sys.path)
        self.address = host.address
        self.address6 = PREFIX6 + host.address.removeprefix(PREFIX)
        self._own_pids = own_pids
        self._log, self._files = directory / "sshd.log", directory / "run"
        (self._files / "home" / ".ssh").mkdir(parents=True, mode=0o700)
        self.public_key = make_key(self._files / "host_key")
        host.run("ip", "address", "add", f"{self.address6}/64", "dev", "eth0", "nodad")

    def start(self, files: dict[str, str]) -> None:
        """Boot, with these files below /run."""
        passwd = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
        files = files | {
            "passwd": "\n".join([f"root:x:0:0::{HOME}:/bin/bash", *passwd, ""]),
            "shadow": "root:*:1::::::\nsshd:!:1::::::\n",
            "sshd_config": _SSHD_CONFIG,
        }
        for name, text in files.items():
            (self._files / name).touch(mode=0o600)
            (self._files / name).write_text(text)
        spaces = ["--mount", "--uts", *(["--pid", "--fork", "--kill-child"] if self._own_pids else [])]
        boot = ["unshare", *spaces, "sh", "-c", _BOOT, "sh", self.name, str(self._files), *self._kept]
        with open(self._log, "wb") as log:
            # Without its first process, which the kernel ends with ours, all of the host is gone.
            self._boot = subprocess.Popen(
                self.host.within("setpriv", "--pdeathsig", "KILL", *boot),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(lambda: self._listens() or self._boot.poll() is not None, LONGEST, f"sshd on {self.name}")
            assert self._boot.poll() is None, self.log
        except BaseException:
            self.close()
            raise
        self.pid = children(self._boot.pid)[0] if self._own_pids else self._boot.pid

    def _listens(self) -> bool:
        return self.log.count("Server listening on ") == 2 * len(PORTS)

    @property
    def log(self) -> str:
        """What sshd said."""
        return self._log.read_text(errors="replace")

    def file(self, path: str | Path) -> Path:
        """A file of this host, as the test can open it."""
        return Path(f"/proc/{self.pid}/root", str(path).lstrip("/"))

    def within(self, *command: str, cwd: str | Path = "/tmp") -> list[str]:
        """The command that runs a command here."""
        spaces = ["--net", "--mount", "--uts", *(["--pid"] if self._own_pids else [])]
        return ["nsenter", "--target", str(self.pid), *spaces, "--", "env", "-C", str(cwd), *command]

    def run(self, *command: str, cwd: str | Path = "/tmp") -> str:
        """Run a command here to its end, and return what it prints."""
        argv, env = self.within(*command, cwd=cwd), environment()
        done = subprocess.run(argv, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LONGEST)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def processes(self) -> dict[int, list[str]]:
        """The command lines of what runs here, except sshd, by the pids that the test can use."""
        found = {}
        for pid in self._pids():
            with contextlib.suppress(OSError):  # it has ended
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
                if not Path(f"/proc/{pid}/comm").read_text().startswith("sshd"):
                    found[pid] = words
        return found

    def _pids(self) -> Iterator[int]:
        """All that is on this host's network, but what booted it."""
        here = os.fstat(self.host.fd).st_ino
        for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{pid}/ns/net").st_ino == here and pid != self._boot.pid:
                    yield pid

    def traces(self) -> list[str]:
        """What jobs have left here: processes, and whatever lies in /tmp or in shared memory."""
        return [f"process {pid}: {' '.join(words)}" for pid, words in self.processes().items()] + self._files_left()

    def _files_left(self) -> list[str]:
        files = {f"{place}/{path.name}" for place in ("/tmp", "/dev/shm") for path in self.file(place).iterdir()}
        return sorted(files - {"/" + "/".join(Path(path).parts[1:3]) for path in self._kept})

    def sweep(self) -> None:
        """End what jobs have left here."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.run("rm", "-rf", "--", *self._files_left())

    @contextlib.contextmanager
    def without(self, *directories: str | Path) -> Iterator[None]:
        """Directories, or files, of programs and packages are not there."""
        hidden: list[str] = []
        try:
            for path in map(str, directories):
                self.run("mount", *(["-t", "tmpfs", "tmpfs"] if Path(path).is_dir() else ["--bind", "/dev/null"]), path)
                hidden.append(path)
            yield
        finally:
            for path in hidden:
                self.run("umount", path)

    def close(self) -> None:
        """End all of it."""
        self._boot.kill()
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._boot.wait()


def environment(**extra: str) -> dict[str, str]:
    """That of the user who types something on a host."""
    return {"PATH": os.environ["PATH"] + ":/usr/sbin", "HOME": str(HOME)} | extra


def make_key(path: Path) -> str:
    """Make a key pair for ssh; returns the public one."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=LONGEST)
    return path.with_name(path.name + ".pub").read_text().strip()


def _below_tmp(*paths: str | Path) -> list[str]:
    """The directories among these that a /tmp of their own would hide: Python, the packages, this project."""
    return sorted(path for path in set(map(str, paths)) if path.startswith("/tmp/") and Path(path).is_dir())
