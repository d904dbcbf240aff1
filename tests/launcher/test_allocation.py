from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from launcher.carriers import mpi, sge, slurm
from launcher.carriers.allocation import offered
from launcher.errors import UsageError
from launcher.hosts import Host
from launcher.options import Options, parse


def options(*arguments: str) -> Options:
    return parse([*arguments, "-n", "4", "python"], "x")


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def test_tasks_are_slots_if_there_are_enough_for_all_workers() -> None:
    tasks = [("a", 2), ("b", 1), ("a", 1)]
    assert offered(tasks, 4) == (Host("a", slots=3), Host("b", slots=1))
    assert offered(tasks, 5) == (Host("a"), Host("b"))


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PBS_NODEFILE", "a\na\nb\nb\n"),
        ("LSB_DJOB_HOSTFILE", "a\nb\na\nb"),
        ("PE_HOSTFILE", "a 2 q UNDEFINED\nb 2 q <NULL>\n\n"),
    ],
)
def test_mpi_takes_the_hosts_of_the_batch_system(tmp_path: Path, variable: str, text: str) -> None:
    path = tmp_path / "nodes"
    path.write_text(text)
    found = mpi.hosts(options("--launcher", "mpi"), {variable: str(path)})
    assert found == (Host("a", slots=2), Host("b", slots=2))
    given = options("--launcher", "mpi", "-H", "c:slots=4")
    assert mpi.hosts(given, {variable: str(path)}) == (Host("c", slots=4),)


def test_mpi_without_hosts_is_on_this_one() -> None:
    [host] = mpi.hosts(options("--launcher", "mpi"), {})
    assert host.is_here
    command = mpi.argv(host, options("--launcher", "mpi", "--python", "/other"))
    assert command[:5] == ["mpirun", "-n", "1", "--host", "localhost"] and sys.executable in command


def test_a_list_of_hosts_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"PBS_NODEFILE=.*gone: it cannot be read"):
        mpi.hosts(options("--launcher", "mpi"), {"PBS_NODEFILE": str(tmp_path / "gone")})


def test_a_user_or_a_port_is_for_ssh() -> None:
    for hosts in ("a,me@b", "a:port=22"):
        with pytest.raises(UsageError, match="a user or a port is for --launcher ssh"):
            mpi.hosts(options("--launcher", "mpi", "-H", hosts), {})


@pytest.mark.parametrize(("launcher", "module"), [("mpi", mpi), ("slurm", slurm), ("sge", sge)])
def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, launcher: str, module: object) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=f"--launcher {launcher} needs the program"):
        module.hosts(options("--launcher", launcher), {"SLURM_JOB_NODELIST": "a", "PE_HOSTFILE": "f"})  # type: ignore[attr-defined]


def test_the_agent_forgets_what_is_true_on_the_launchers_host_only() -> None:
    for module in (mpi, slurm, sge):
        command = module.argv(Host("a"), options("--launcher", "mpi", "--python", "/other"))
        at = command.index("env")
        assert command[at : at + 6] == ["env", "-u", "SSH_CONNECTION", "-u", "DMLC_NODE_HOST", "/other"]
