"""docs/optimizers.md: its code runs, and its tables say what the classes do."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from kvstore import rules
from kvstore.arguments import parameters
from kvstore.optimizer import LRScheduler, Optimizer, base, create, registered, schedulers

from .test_optimizer_wire import own_arguments

PAGE = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text()
CLASSES = {type(create(name)).__name__: name for name in registered()}


def rows(section: str) -> list[list[str]]:
    """The rows of the one table of a section."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]


def row_of(name: str) -> list[str]:
    """What the table of arguments is to say of an optimizer."""
    optimizer = create(name)
    own = [argument for argument in parameters(type(optimizer)) if argument not in parameters(Optimizer)]
    defaults = [f"{argument}={getattr(optimizer, argument)!r}" for argument in ["learning_rate", *own]]
    slots: dict[str, None] = {}
    for arguments in ({}, {"momentum": 0.9} if "momentum" in own else {}, own_arguments(name)):
        slots.update(dict.fromkeys(create(name, **arguments).create_state(0, np.ones((2, 2)))))
    lazy = "`lazy_update`" if "lazy_update" in own else "yes" if optimizer.lazy_update else "no"
    state = ", ".join(f"`{slot}`" for slot in slots)
    return [
        f"`{type(optimizer).__name__}`",
        f"`{', '.join(defaults)}`",
        state,
        ("no", "yes")[optimizer.elementwise],
        lazy,
    ]


def signature(cls: type, *hidden: str) -> str:
    """A constructor's arguments as the page writes them, without the hidden ones."""
    given = [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return ", ".join(
        p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in given if p.name not in hidden
    )


def test_the_code_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    monkeypatch.setattr(rules, "_UPDATERS", dict(rules._UPDATERS))
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    exec(compile("\n".join(blocks), "docs/optimizers.md", "exec"), {})


def test_the_table_of_arguments_is_that_of_the_classes() -> None:
    expected = [row_of(CLASSES[name]) for name in sorted(CLASSES, key=str.lower)]
    assert rows("Arguments, state, and which keys may be split") == expected


def test_the_table_of_formulas_has_all_optimizers() -> None:
    named = [name for row in rows("Formulas") for name in re.findall(r"\w+", row[0])]
    assert sorted(named) == sorted(CLASSES) and all(row[1] and row[2] for row in rows("Formulas"))


def test_the_table_of_common_arguments_is_that_of_the_base_class() -> None:
    listed = {row[0].strip("`"): row[1].strip("`") for row in rows("Arguments of all")}
    defaults = {p.name: repr(p.default) for p in inspect.signature(Optimizer).parameters.values()}
    assert listed == {**defaults, "learning_rate": "see below"}


def test_the_table_of_schedulers_is_that_of_the_classes() -> None:
    names = {name for name in schedulers.__all__ if name != "LRScheduler"}
    expected = {f"`{n}`": f"`{signature(getattr(schedulers, n), *parameters(LRScheduler))}`" for n in names}
    assert {row[0]: row[1] for row in rows("Schedulers")} == expected
