"""Every training script: servers and the scheduler stop at its first lines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "demo.py")
SERVER = """
import sys

def updater(name):
    return lambda function: function

def serve():
    print("serving without", *({"numpy", "sklearn", "torch", "mlxtend"} - set(sys.modules)))
    raise SystemExit(7)
"""


@pytest.mark.processes
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_server_imports_nothing_heavy(script: str, tmp_path: Path) -> None:
    (tmp_path / "kvstore.py").write_text(SERVER)
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, EXAMPLES / script], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert set(done.stdout.split()[2:]) == {"numpy", "sklearn", "torch", "mlxtend"}
