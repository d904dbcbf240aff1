"""SECURITY.md names a test for each rule, and that test exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_rule_has_its_tests() -> None:
    rows = re.findall(r"^\| (S\d+) \|.*\| (.*) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert [rule for rule, _ in rows] == [f"S{number}" for number in range(1, 21)]
    for rule, tests in rows:
        named = re.findall(r"`([\w/]+\.py)(?::(\w+))?`", tests)
        assert named or rule == "S10"
        for file, function in named:
            path = ROOT / file if "/" in file else ROOT / "tests" / "security" / file
            functions = {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)}
            assert not function or function in functions, f"{rule}: {file}:{function}"
