"""Nothing decides by the wall clock, which users and NTP set: it is for what people read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WALL = {
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime", "CLOCK_REALTIME"},
    "datetime": {"now", "utcnow", "today", "fromtimestamp"},
    "date": {"today", "fromtimestamp"},
}
#: Who may look at it, and what for.
ALLOWED = {
    "kvstore/factory.py": "when a process failed, for the launcher's report",
    "launcher/run.py": "the time of a line of output",
    "launcher/logs.py": "likewise",
    "launcher/survey.py": "--check says how far the clocks of hosts are apart",
    "launcher/check.py": "likewise",
}


def looks(source: str) -> Iterator[str]:
    """Each look at the wall clock, whatever its module is called there."""
    tree = ast.parse(source)
    names = {name: name for name in WALL}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"line {node.lineno}: {alias.name}" for alias in node.names if alias.name in WALL["time"])
        if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Name, ast.Attribute)):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if node.attr in WALL.get(names.get(owner, owner), ()):
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_who_looks_at_the_wall_clock() -> None:
    paths = [path for package in ("pslite", "kvstore", "launcher") for path in (ROOT / package).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): list(looks(path.read_text())) for path in paths}
    assert {path for path, lines in found.items() if lines} == set(ALLOWED), found


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.time()",
        "import time as t\nt.time_ns()",
        "from time import time",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime as d\nd.utcnow()",
        "import time\nclock = time.time",
        "import time\ntime.clock_gettime(time.CLOCK_REALTIME)",
    ],
)
def test_a_look_is_found(source: str) -> None:
    assert len(list(looks(source))) == 1


def test_other_clocks_are_not_taken_for_it() -> None:
    assert not list(looks("import time\ntime.monotonic()\ntime.perf_counter()\ntime.sleep(1)\nself.time()"))
