"""Requests that no worker of this version makes: typed errors at whoever sent them, and the server serves on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvstore
from kvstore.commands import CODED, DATA, INIT, ROWS, WHOLE
from kvstore.sparse import zeros
from pslite import Flag, KVPairs
from pslite.dtypes import CODES, code_of
from pslite.errors import (
    DTypeError,
    ProtocolError,
    PSError,
    RemoteError,
    RowIndexError,
    ShapeError,
    StorageError,
    UnknownKeyError,
)

from .sparse_jobs import KV, column, rsp

SHAPE = (6, 3)
PULL, PUSH = Flag.PULL, Flag.PUSH
ONE = np.ones((1, 3), np.float32)
IDS = np.array([2])


def pairs(arrays: Any, kinds: Any = (ROWS,), keys: Any = None, lens: Any = None, codes: Any = None) -> KVPairs:
    """A request's pairs as they are given; the key 't' unless others are."""
    wire = np.array([0] if keys is None else keys, np.uint64)
    request = KVPairs(wire, arrays, codes=[code_of(a.dtype) for a in arrays] if codes is None else codes)
    request.kinds = None if kinds is None else np.array(kinds)
    request.lens = np.array([len(arrays)] if lens is None else lens, np.int64)
    return request


def send(kv: Any, request: KVPairs, flags: int, cmd: int = DATA, meta: Any = None) -> Any:
    return kv._worker.customer.wait_for(kv._worker.send(request, flags, cmd, meta=meta))


def in_job(work: Callable[[Any], None]) -> None:
    """Run ``work(kv)``, then see that the server has lost nothing and takes the next push."""

    def checked(kv: KV) -> None:
        kv.init(["t", "w"], [rsp({1: 7}, SHAPE), np.ones(SHAPE, np.float32)])
        work(kv)
        assert column(kv.pull("t")) == [0, 7, 0, 0, 0, 0]
        assert column(kv.pull("w")) == [1] * 6
        kv.push("t", rsp({2: 5}, SHAPE))
        assert column(kv.row_sparse_pull("t", row_ids=[1, 2])) == [0, 0, 5, 0, 0, 0]
        kv.init("new", zeros(SHAPE))

    kvstore.LocalCluster(timeout=10).run(checked)


PUSHED: dict[str, tuple[type[PSError], KVPairs]] = {
    "ids that descend": (ShapeError, pairs([np.array([3, 1]), np.ones((2, 3), np.float32)])),
    "an id twice": (ShapeError, pairs([np.array([3, 3]), np.ones((2, 3), np.float32)])),
    "an id too large": (RowIndexError, pairs([np.array([6]), ONE])),
    "a huge id": (RowIndexError, pairs([np.array([2**62]), ONE])),
    "a negative id": (RowIndexError, pairs([np.array([-1]), ONE])),
    "ids of int32": (DTypeError, pairs([np.array([1], np.int32), ONE])),
    "ids of float64": (DTypeError, pairs([np.array([1.0]), ONE])),
    "ids in two dimensions": (DTypeError, pairs([np.array([[1]]), ONE])),
    "an id without dimension": (DTypeError, pairs([np.array(1), ONE])),
    "more ids than rows": (ShapeError, pairs([np.array([1, 2]), ONE])),
    "more rows than ids": (ShapeError, pairs([np.empty(0, np.int64), ONE])),
    "shorter rows": (ShapeError, pairs([IDS, ONE[:, :2]])),
    "flat rows": (ShapeError, pairs([IDS, ONE[0]])),
    "rows without dimension": (ShapeError, pairs([IDS, ONE[0, 0].reshape(())])),
    "rows of float64": (DTypeError, pairs([IDS, ONE.astype("f8")])),
    "rows of bfloat16": (DTypeError, pairs([IDS, ONE.astype("u2")], codes=[CODES["int64"], CODES["bfloat16"]])),
    "a whole array": (StorageError, pairs([np.ones(SHAPE, np.float32)], [WHOLE])),
    "a whole array called rows": (ProtocolError, pairs([np.ones(SHAPE, np.float32)])),
    "rows called a whole array": (ProtocolError, pairs([IDS, ONE], [WHOLE])),
    "rows called compressed": (ProtocolError, pairs([IDS, ONE], [CODED])),
    "rows of no known kind": (ProtocolError, pairs([IDS, ONE], [99])),
    "a kind that is a fraction": (ProtocolError, pairs([IDS, ONE], [1.5])),
    "no arrays": (ProtocolError, pairs([])),
    "three arrays": (ProtocolError, pairs([IDS, ONE, ONE])),
    "all arrays for the first of two keys": (ProtocolError, pairs([IDS, ONE], [ROWS] * 2, [0, 1], [2, 0])),
    "fewer arrays than announced": (ProtocolError, pairs([IDS, ONE], lens=[3])),
    "a negative number of arrays": (ProtocolError, pairs([IDS, ONE], [ROWS] * 2, [0, 1], [3, -1])),
    "an unknown key": (UnknownKeyError, pairs([IDS, ONE], keys=[77])),
    "rows for one key, nonsense for another": (ShapeError, pairs([IDS, ONE, IDS, ONE[0]], [ROWS] * 2, [0, 1], [2, 2])),
}

PULLED: dict[str, tuple[type[PSError], KVPairs]] = {
    "ids that descend": (ShapeError, pairs([np.array([3, 1])])),
    "an id too large": (RowIndexError, pairs([np.array([6])])),
    "a negative id": (RowIndexError, pairs([np.array([-1])])),
    "ids of int32": (DTypeError, pairs([np.array([1], np.int32)])),
    "ids in two dimensions": (DTypeError, pairs([np.array([[1]])])),
    "rows without ids": (ProtocolError, pairs([])),
    "ids and rows": (ProtocolError, pairs([IDS, ONE])),
    "a whole pull with ids": (ProtocolError, pairs([IDS], [WHOLE])),
    "no known kind": (ProtocolError, pairs([IDS], [7])),
    "rows of a dense key": (StorageError, pairs([IDS], keys=[1])),
    "no lengths": (ProtocolError, KVPairs(np.array([0], np.uint64), [], kinds=np.array([ROWS], np.uint64))),
}


def test_malformed_pushes() -> None:
    def work(kv: Any) -> None:
        for what, (kind, request) in PUSHED.items():
            for flags in (PUSH, PUSH | PULL):
                with pytest.raises(kind) as caught:
                    send(kv, request, flags)
                assert caught.type is kind, what

    in_job(work)


def test_malformed_pulls_also_repeated_ones() -> None:
    def work(kv: Any) -> None:
        for what, (kind, request) in PULLED.items():
            for flags in (PULL, PULL | Flag.REPLAY):
                with pytest.raises(kind) as caught:
                    send(kv, request, flags)
                assert caught.type is kind, what

    in_job(work)


def test_flat_values_are_no_arrays() -> None:
    def work(kv: Any) -> None:
        flat = KVPairs(np.array([0], np.uint64), np.ones(3, np.float32))
        for flags, cmd in ((PUSH, DATA), (PUSH, INIT)):
            with pytest.raises(ProtocolError):
                send(kv, flat, flags, cmd)

    in_job(work)


NAMES: dict[str, tuple[type[PSError], Any]] = {
    "none": (ProtocolError, None),
    "a list": (ProtocolError, [["x", False, [6, 3]]]),
    "of another key": (ProtocolError, {8: ["x", False, [6, 3]]}),
    "too short": (ProtocolError, {9: ["x", False]}),
    "a number": (ProtocolError, {9: 3}),
    "no shape": (ProtocolError, {9: ["x", False, None]}),
    "a shape of text": (ProtocolError, {9: ["x", False, "63"]}),
    "a shape of fractions": (ProtocolError, {9: ["x", False, [6.0, 3]]}),
    "a negative shape": (ProtocolError, {9: ["x", False, [-6, 3]]}),
    "a shape beyond 64 bits": (ProtocolError, {9: ["x", False, [2**63, 3]]}),
    "no dimension": (ShapeError, {9: ["x", False, []]}),
    "another row": (ShapeError, {9: ["x", False, [6, 4]]}),
    "fewer rows": (RowIndexError, {9: ["x", False, [2, 3]]}),
    "a huge shape": (PSError, {9: ["x", False, [2**50, 3]]}),
    "a shape larger than any memory": (PSError, {9: ["x", False, [2**62, 3]]}),
    "a key of bytes": (ProtocolError, {9: [b"x", False, [6, 3]]}),
    "a key that is a list": (ProtocolError, {9: [["x"], False, [6, 3]]}),
}


def test_malformed_inits() -> None:
    def work(kv: Any) -> None:
        for what, (kind, names) in NAMES.items():
            with pytest.raises(kind) as caught:
                send(kv, pairs([IDS, ONE], keys=[9]), PUSH, INIT, names)
            assert caught.type is kind or kind is PSError, what
            with pytest.raises(UnknownKeyError):  # nothing was created
                send(kv, pairs([IDS], keys=[9]), PULL)

    in_job(work)


ARRAYS = st.sampled_from(
    [
        IDS, ONE, IDS.astype("i4"), np.array([5, 6]), np.array([[2]]), np.array(2), ONE[0], ONE.astype("f8"),
        np.ones(SHAPE, np.float32), np.empty((0, 3), np.float32), np.empty(0, np.int64), np.ones(2, bool),
    ]
)  # fmt: skip
KINDS = st.sampled_from([WHOLE, ROWS, CODED, 9])


@st.composite
def requests(draw: Any) -> KVPairs:
    """Keys, known or not, each with a few arrays of some kind; the columns need not tell the truth."""
    keys = draw(st.lists(st.sampled_from([0, 1, 50]), min_size=1, max_size=3))  # ascending or not
    arrays = draw(st.lists(ARRAYS, max_size=5))
    lens = draw(st.lists(st.integers(-1, 3), min_size=len(keys), max_size=len(keys)))
    kinds = draw(st.none() | st.lists(KINDS, min_size=len(keys), max_size=len(keys)))
    request = pairs(arrays, kinds, keys, lens)
    request.lens = draw(st.sampled_from([None, request.lens]))
    return request


def test_random_requests_get_an_answer_or_a_typed_error() -> None:
    def work(kv: Any) -> None:
        meta = st.sampled_from([None, [None, None], [], {}, 3, {0: ["z", False, [6, 3]], 50: ["z", False, [6, 3]]}])

        @settings(max_examples=150)
        @given(requests(), st.sampled_from([PUSH, PULL, PUSH | PULL, PULL | Flag.REPLAY, 0]), meta)
        def try_one(request: KVPairs, flags: int, meta: Any) -> None:
            try:
                send(kv, request, flags, DATA, meta)
            except PSError as error:
                assert not isinstance(error, RemoteError)  # which is what the server did not expect
            assert kv.row_sparse_pull("t", row_ids=[1]).indices.tolist() == [1]

        try_one()
        kv.push("t", rsp({1: 7}, SHAPE))
        kv.push("w", np.ones(SHAPE, np.float32))

    in_job(work)
