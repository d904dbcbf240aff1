"""The tree of errors: it crosses the wire unchanged, and each message says what to do."""

from __future__ import annotations

import copy
import io
import tokenize
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import given, settings

import kvstore
import pslite
from pslite import errors
from pslite.errors import PSError

CLASSES = [getattr(errors, name) for name in errors.__all__]
VALUES = {
    "missing": ["worker 1", "worker 2"],
    "seconds": 2.5,
    "rank": 3,
    "got": [2, 3],
    "expected": [4],
    "trace": "Traceback: line 7",
}


def example(cls: type[PSError]) -> PSError:
    if cls.fields == ("message",):
        return cls("read the manual")
    return cls(**{name: VALUES.get(name, f"the {name}") for name in cls.fields})


@pytest.mark.parametrize("cls", CLASSES)
def test_it_crosses_the_wire_with_all_its_fields(cls: type[PSError]) -> None:
    error = example(cls)
    back = PSError.from_wire(msgpack.unpackb(msgpack.packb(error.to_wire())))
    assert type(back) is cls
    assert {name: getattr(back, name) for name in cls.fields} == {name: getattr(error, name) for name in cls.fields}
    assert str(back) == str(error)


@pytest.mark.parametrize("cls", CLASSES)
def test_it_is_a_ps_error_that_prints_all_it_knows(cls: type[PSError]) -> None:
    error = example(cls)
    assert isinstance(error, PSError)
    for name in cls.fields:
        value = getattr(error, name)
        shown = value if isinstance(value, list) else [value]
        for part in shown:
            text = f"{part:g}" if isinstance(part, float) else str(part)
            assert text in str(error), f"{name} is not in the message"


@pytest.mark.parametrize("cls", CLASSES)
def test_missing_fields_do_not_break_printing(cls: type[PSError]) -> None:
    if "seconds" not in cls.fields and "got" not in cls.fields:
        assert str(cls())


@pytest.mark.parametrize("cls", CLASSES)
def test_it_can_be_copied(cls: type[PSError]) -> None:
    """What the standard library does to exceptions of other processes and threads."""
    again = copy.copy(example(cls))
    assert (type(again), str(again)) == (cls, str(example(cls)))


@pytest.mark.parametrize(
    ("cls", "remedy"),
    [
        (errors.NotInClusterError, "pslite-launch -n 2 -s 1"),
        (errors.UnknownKeyError, "call kv.init("),
        (errors.DuplicateKeyError, "init (or broadcast) each key once"),
        (errors.ConflictError, "must be the same on every rank"),
        (errors.ClosedError, "create a new one"),
        (errors.ForkError, "use it in the parent only"),
        (errors.RendezvousTimeout, "PSLITE_START_TIMEOUT"),
        (errors.RequestTimeout, "PSLITE_TIMEOUT"),
        (errors.BarrierTimeout, "PSLITE_TIMEOUT"),
        (errors.WorkerFinished, "the same number of batches"),
        (errors.ShapeError, "expected (4,)"),
    ],
)
def test_the_message_says_what_to_do(cls: type[PSError], remedy: str) -> None:
    assert remedy in str(example(cls))


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.UnknownKeyError, KeyError),
        (errors.KeyTypeError, TypeError),
        (errors.DTypeError, TypeError),
        (errors.ShapeError, ValueError),
        (errors.ClosedError, RuntimeError),
        (errors.RendezvousTimeout, TimeoutError),
        (errors.RequestTimeout, errors.WaitTimeout),
        (errors.BarrierTimeout, TimeoutError),
        (errors.PeerLost, errors.PeerError),
        (errors.PeerError, ConnectionError),
        (errors.BindError, errors.JoinError),
        (errors.WorkerLeft, errors.WorkerFinished),
        (errors.RemoteError, RuntimeError),
    ],
)
def test_it_is_caught_as_what_a_python_user_expects(cls: type[PSError], builtin: type[BaseException]) -> None:
    assert issubclass(cls, builtin)


def test_the_packages_show_the_tree() -> None:
    assert all(getattr(pslite, name) is getattr(errors, name) for name in errors.__all__)
    assert kvstore.PSError is PSError


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@settings(max_examples=50)
@given(json_like | st.tuples(st.sampled_from([*errors.__all__, "SystemExit", "dict"]), json_like).map(list))
def test_any_record_becomes_an_error_that_can_be_printed(record: Any) -> None:
    error = PSError.from_wire(record)
    assert isinstance(error, PSError)
    assert str(error) or error.message == ""  # type: ignore[attr-defined]


@pytest.mark.parametrize("record", [None, 5, [], ["PSError"], ["SystemExit", {}], ["PSError", {"x": 1}], [["a"], {}]])
def test_a_malformed_record_is_a_protocol_error(record: Any) -> None:
    assert type(PSError.from_wire(record)) is errors.ProtocolError


def test_a_field_that_is_not_there_is_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="has no field"):
        errors.PeerLost(nod="worker 1")


def test_errors_know_no_pickle() -> None:
    source = Path(errors.__file__).read_text()
    names = {t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.NAME}
    assert not names & {"pickle", "marshal", "eval", "exec"}
