"""Finds time.sleep in the tests: ``python -m tests.lint_sleep``.

A test that sleeps is slow on a fast machine and fails on a slow one. Where nothing else does, the line says why in a
comment ``# sleep-ok: reason``, and there are at most ``MOST`` of those.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

Node = TypeVar("Node", bound=ast.AST)

MOST = 10
ALLOWED = re.compile(r"#\s*sleep-ok:\s*\S")


def sleeps(source: str) -> Iterator[tuple[int, bool]]:
    """Line number of each use of time.sleep, under whatever name, and whether a comment there gives a reason."""
    tree = ast.parse(source)
    excused = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and ALLOWED.match(token.string)
    }
    modules = {a.asname or a.name for node in _all(tree, ast.Import) for a in node.names if a.name == "time"}
    functions = {
        a.asname or a.name
        for node in _all(tree, ast.ImportFrom)
        for a in node.names
        if node.module == "time" and a.name == "sleep"
    }
    lines = {
        node.lineno
        for node in _all(tree, ast.Attribute)
        if node.attr == "sleep" and isinstance(node.value, ast.Name) and node.value.id in modules
    }
    lines |= {node.lineno for node in _all(tree, ast.Name) if node.id in functions}
    return ((line, line in excused) for line in sorted(lines))


def problems(root: Path) -> list[str]:
    """One line of text for each sleep without a reason, and one if there are too many with."""
    found = [(path, *use) for path in sorted(root.rglob("*.py")) for use in sleeps(path.read_text())]
    errors = [f"{path}:{line}: time.sleep without '# sleep-ok: reason'" for path, line, excused in found if not excused]
    excused = [f"{path}:{line}" for path, line, excused in found if excused]
    if len(excused) > MOST:
        errors.append(f"{len(excused)} excused sleeps, at most {MOST} are allowed: {', '.join(excused)}")
    return errors


def _all(tree: ast.AST, kind: type[Node]) -> Iterator[Node]:
    return (node for node in ast.walk(tree) if isinstance(node, kind))


if __name__ == "__main__":
    errors = problems(Path(__file__).parent)
    print("\n".join(errors) or "no unexcused sleep in the tests")
    sys.exit(bool(errors))
