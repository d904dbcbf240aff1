"""Where keys live."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from pslite.kv_pairs import KVPairs, default_slicer
from pslite.postoffice.placement import Balancer, key_ranges

servers = st.integers(1, 100)


@given(servers)
def test_ranges_cover_all_keys_without_a_gap(count: int) -> None:
    ranges = key_ranges(count)
    assert len(ranges) == count
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 2**64
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    widths = [hi - lo for lo, hi in ranges]
    assert max(widths) - min(widths) < count


@given(servers, st.sets(st.integers(0, 2**64 - 1), max_size=50))
def test_every_key_goes_to_the_server_of_its_range(count: int, chosen: set[int]) -> None:
    keys = np.array(sorted(chosen | {0, 2**64 - 1}), np.uint64)
    ranges = key_ranges(count)
    slices = default_slicer(KVPairs(keys, np.arange(len(keys))), ranges)
    assert len(slices) == count
    got = []
    for part, (lo, hi) in zip(slices, ranges, strict=True):
        if part is not None:
            assert len(part.keys)
            assert all(lo <= int(key) < hi for key in part.keys)
            got += [*zip(part.keys.tolist(), part.vals, strict=True)]
    assert got == [*zip(keys.tolist(), range(len(keys)), strict=True)]


@given(servers, st.lists(st.integers(0, 10**6), max_size=200))
def test_no_server_has_more_than_its_share_and_one_value(count: int, sizes: list[int]) -> None:
    balancer, load = Balancer(count), [0] * count
    for size in sizes:
        load[balancer.place(size)] += size
    assert max(load) - min(load) <= max(sizes, default=0)


@given(servers, st.integers(1, 1000), st.lists(st.integers(0, 10**6), max_size=20))
def test_a_split_value_is_cut_evenly(count: int, rows: int, before: list[int]) -> None:
    balancer = Balancer(count)
    for size in before:
        balancer.place(size)
    pieces = balancer.split(rows, 8)
    assert len(pieces) == min(rows, count)
    assert len({server for server, _, _ in pieces}) == len(pieces)
    assert pieces[0][1] == 0
    assert pieces[-1][2] == rows
    assert all(a[2] == b[1] for a, b in itertools.pairwise(pieces))
    lengths = [end - first for _, first, end in pieces]
    assert max(lengths) - min(lengths) <= 1


def test_placement_is_the_same_on_every_worker() -> None:
    sizes = [5, 400, 3, 3, 900, 1, 1, 1]
    one, other = Balancer(3), Balancer(3)
    assert [one.place(s) for s in sizes] == [other.place(s) for s in sizes]
    assert one.split(10, 4) == other.split(10, 4)


def test_a_split_counts_as_load() -> None:
    balancer = Balancer(2)
    assert balancer.split(1, 100) == [(0, 0, 1)]
    assert balancer.place(50) == 1
    assert balancer.split(1, 1) == [(1, 0, 1)]
