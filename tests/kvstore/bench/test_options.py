from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvstore.bench import options
from kvstore.bench.__main__ import main
from kvstore.bench.options import Options, parse


def test_defaults() -> None:
    assert parse([], "pslite bench") == Options()


def test_all_options_arrive() -> None:
    line = "--workload vgg16 --server adam -n 4 -s 2 --type dist_async --transport tcp --peer mxnet --peer-python p"
    line += " --limit --repeat 5 --rounds 9 --calls each --busy-worker --json"
    assert parse(line.split(), "pslite bench") == Options(
        workload="vgg16",
        server="adam",
        workers=4,
        servers=2,
        type="dist_async",
        transport="tcp",
        peer="mxnet",
        peer_python="p",
        limit=True,
        repeat=5,
        rounds=9,
        calls="each",
        busy_worker=True,
        json=True,
    )


def test_a_sweep_may_be_repeated() -> None:
    assert parse(["--sweep", "sizes", "--sweep", "workers", "--sweep", "sizes"], "").sweep == ("sizes", "workers")


def test_rowsparse_is_measured_with_sgd() -> None:
    assert parse(["--workload", "rowsparse"], "").server == "sgd"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--workload alexnet", "--workload='alexnet' is not allowed; workloads are resnet50, vgg16"),
        ("--workload rowsparse --server adam", "rowsparse is measured with sgd"),
        ("--workload pairs10m -n 2", "it takes --transport, --rounds and --json only"),
        ("--plot a.png", "it needs --sweep"),
        ("--peer mxnet --type dist_async", "MXNet's dist_async needs an optimizer: sgd, mom or adam"),
        ("--peer gloo --server sgd", "an all-reduce is compared with --server none --type dist_sync only"),
        ("--peer mpi --workload rowsparse --server sgd", "an all-reduce is compared with --server none"),
        ("--peer mxnet --peer-python /no/python", "no such interpreter; python -m venv mx && mx/bin/pip install"),
    ],
)
def test_a_mistake_is_explained(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("pslite bench: error: ")
    assert message in err


@pytest.mark.parametrize("line", ["--rounds 0", "-n x", "--peer horovod", "--transport pigeon", "--bogus"])
def test_what_argparse_refuses(line: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(line.split())


def test_without_matplotlib_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    assert main(["--sweep", "sizes", "--plot", "a.png"]) == 2
    assert "matplotlib is not installed: pip install 'pslite[bench]'" in capsys.readouterr().err


@pytest.mark.processes
def test_an_interpreter_without_the_peer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    assert main(["--peer", "mpi", "--peer-python", str(python)]) == 2
    assert "ModuleNotFoundError: No module named 'mpi4py'; install Open MPI" in capsys.readouterr().err
