from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvstore.bench.options import Options, _parser
from kvstore.bench.sweep import KEYS, SIZES, WORKERS, points
from kvstore.bench.workloads import NAMES, workload
from pslite.errors import ConfigError

PAGE = (Path(__file__).parents[3] / "docs" / "performance.md").read_text()


@pytest.mark.parametrize(
    ("name", "keys", "floats"),
    [
        ("resnet50", 161, 25_557_032),
        ("vgg16", 32, 138_357_544),
        ("bert-base", 199, 109_482_240),
        ("big64", 1, 2**24),
        ("big256", 1, 2**26),
        ("small2000", 2000, 32_000),
        ("small100k", 100_000, 800_000),
        ("one16", 1, 16),
        ("rowsparse", 1, 20_000 * 64),
    ],
)
def test_sizes(name: str, keys: int, floats: int) -> None:
    load = workload(name)
    assert (load.name, len(load.shapes), load.floats, load.bytes) == (name, keys, floats, 4 * floats)


def test_an_unknown_workload_is_told_which_exist() -> None:
    with pytest.raises(ConfigError, match=r"'alexnet' is not allowed; workloads are resnet50, .*pairs10m"):
        workload("alexnet")


def test_a_sweep_goes_from_1_kb_to_1_gb_and_from_1_key_to_100_000() -> None:
    sizes = [(x, load.bytes) for x, load, _ in points("sizes", Options())]
    assert sizes == [(size, size) for size in SIZES]
    assert (sizes[0][0], sizes[-1][0]) == (1 << 10, 1 << 30)
    keys = [(x, len(load.shapes)) for x, load, _ in points("keys", Options())]
    assert keys == [(count, count) for count in KEYS]
    assert (keys[0][0], keys[-1][0]) == (1, 100_000)


def test_the_page_lists_all_workloads() -> None:
    listed = re.findall(r"^\| ((?:`\w[\w-]*`(?:, )?)+) \| [\d,]+ \|", PAGE, re.MULTILINE)
    assert re.findall(r"`(.*?)`", ",".join(listed)) == [*NAMES, "pairs10m"]


def test_the_page_lists_all_options() -> None:
    listed = {
        name for line in re.findall(r"^\| (`-.*?) \| ", PAGE, re.MULTILINE) for name in re.findall(r"`(.*?)`", line)
    }
    known = re.findall(r"(?<!\S)(--[\w-]+|-[ns])(?=[ ,\n])", _parser("").format_help().partition("what is measured")[2])
    assert listed == {name for name in known if name not in ("--workload", "--workers", "--servers")}


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_over_workers_keeps_the_workload(name: str) -> None:
    found = [(x, load, at.workers) for x, load, at in points("workers", Options(workload=name))]
    assert found == [(n, workload(name), n) for n in WORKERS]
