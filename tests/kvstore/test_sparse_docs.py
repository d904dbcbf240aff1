"""docs/sparse.md and docs/keys.md: their code runs, and what they say of optimizers and dtypes is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.arguments import parameters
from kvstore.optimizer import create, registered
from pslite.dtypes import NAMES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["sparse.md", "keys.md"])
def test_the_code_of_the_page_runs(page: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_the_named_optimizers_are_lazy_and_two_can_be_told_not_to_be() -> None:
    text = (DOCS / "sparse.md").read_text()
    assert "It is the default of SGD, Adam, AdaGrad and Ftrl" in text
    assert all(create(name).lazy_update for name in ("sgd", "adam", "adagrad", "ftrl"))
    assert {"sgd", "adam"} <= {name for name in registered() if "lazy_update" in parameters(type(create(name)))}
    assert not {"adagrad", "ftrl"} & {n for n in registered() if "lazy_update" in parameters(type(create(n)))}


def test_every_dtype_of_the_page_travels_and_no_other() -> None:
    said = {"float32", "float64", "float16", "bfloat16", "bool"}
    said |= {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
    assert said == set(NAMES)
    with kvstore.create("local") as kv:
        for name in sorted(said - {"bfloat16"}):
            kv.init(name, np.ones(2, name))
            assert kv.pull(name).dtype == name
