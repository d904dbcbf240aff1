"""What a case of the plan is, and the registry of them.

A case is a function that takes a seed and an empty directory, does harm to something of this project, and says in a
``Trial`` what came of it. All randomness comes from the seed. Modules named ``*_cases.py`` beside this one hold them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Trial:
    """What one fault, or one combination of faults, came to. Times are seconds; None where there is nothing to time."""

    lost: int = 0
    doubled: int = 0
    hung: bool = False
    wrong: list[str] = field(default_factory=list)  # what else was wrong, in words
    detection: float | None = None  # from the fault until somebody acted on it
    recovery: float | None = None  # from the fault until everybody went on

    @property
    def ok(self) -> bool:
        """Whether all promises were kept."""
        return not (self.lost or self.doubled or self.hung or self.wrong)


#: What a case does for a seed in a directory. A list, if one job was harmed several times.
Run = Callable[[int, Path], Trial | list[Trial]]


@dataclass(frozen=True)
class Case:
    """An entry of the registry; several may share a number of the plan."""

    number: int
    name: str
    run: Run
    quick: int  # trials in the test suite
    soak: int  # trials in `make soak`
    needs: tuple[str, ...]  # programs, modules, or "root"
    limit: float  # seconds that a call of ``run`` may take; then it hangs
    in_suite: bool  # its trials are tests of the suite by themselves: test_cases.py leaves them out

    @property
    def id(self) -> str:
        """As it is written on a command line: ``3-server-killed-sync``."""
        return "-".join([str(self.number), *re.findall("[a-z0-9]+", self.name.lower())])

    def missing(self) -> str | None:
        """What this machine lacks for it; None if nothing."""
        found = lacking(self.needs)
        return f"case {self.id} needs {', '.join(found)}" if found else None


CASES: list[Case] = []  # in the order of registration; `load` fills it


def case(
    number: int,
    name: str,
    *,
    quick: int = 1,
    soak: int = 100,
    needs: tuple[str, ...] = (),
    limit: float = 60.0,
    in_suite: bool = False,
) -> Callable[[Run], Run]:
    """Register the function below."""

    def register(run: Run) -> Run:
        CASES.append(Case(number, name, run, quick, soak, needs, limit, in_suite))
        return run

    return register


def load() -> list[Case]:
    """All cases, by number."""
    package = importlib.import_module(__package__ or "tests.cases")
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        if module.endswith("_cases") and not module.startswith("test_"):
            importlib.import_module(f"{package.__name__}.{module}")
    assert len({case.id for case in CASES}) == len(CASES), "two cases have one name"
    return sorted(CASES, key=lambda case: case.number)


def lacking(needs: Sequence[str]) -> list[str]:
    """Which of these this machine does not have."""
    return [need for need in needs if not _is_there(need)]


def _is_there(need: str) -> bool:
    if need == "root":
        return os.geteuid() == 0
    return shutil.which(need) is not None or importlib.util.find_spec(need) is not None
