"""A few trials of each case; `make soak` runs many."""

from __future__ import annotations

import os

import pytest

from .__main__ import calls
from .case import Case, load
from .seed import SEED


def parameters() -> list[object]:
    own = [case for case in load() if not case.in_suite]
    return [pytest.param(case, id=case.id, marks=pytest.mark.timeout(case.limit * case.quick + 30)) for case in own]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("case", parameters())
def test_case(case: Case) -> None:
    if lacking := case.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(lacking, pytrace=False)
        pytest.skip(lacking)
    wrong = [text for _, text in calls(case, case.quick, SEED) if text]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def test_every_number_of_the_plan_has_a_case() -> None:
    assert {case.number for case in load()} == set(range(1, 31))
