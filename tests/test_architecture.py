"""ARCHITECTURE.md tells the truth: its names exist, a push passes its stations, the headers are those of now."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import msgpack
import numpy as np
import pytest

from kvstore.dist import DistStore
from kvstore.server.service import Service
from pslite import Config, InprocCluster, Postoffice, run_all
from pslite.postoffice import membership
from pslite.wire import Message, encode
from tests.harness import wait_until

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
STATION = re.compile(r"^\| (worker|server) \| `([\w/]+\.py):([\w.]+)` \|", re.MULTILINE)
FIELD = re.compile(r"^\| (\d+) \| `(\w+)` \| (.+?) \| (.+?) \|", re.MULTILINE)
VALUE = np.ones((256, 128), np.float32)
VOLATILE = {"job", "incarnation"}  # of the fields of a header: only their types are compared

Event = tuple[str, CodeType]  # in which process a function was entered, and which


# Names


def test_every_symbol_exists() -> None:
    named = set(re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE))
    assert len(named) > 50
    assert [f"{path}:{symbol}" for path, symbol in sorted(named) if not exists(path, symbol)] == []


def exists(path: str, symbol: str) -> bool:
    scope: list[ast.stmt] = ast.parse((ROOT / path).read_text()).body if (ROOT / path).exists() else []
    for part in symbol.split("."):
        found = [node for node in scope if part in defined_by(node)]
        if not found:
            return False
        scope = getattr(found[0], "body", [])
    return True


def defined_by(node: ast.stmt) -> set[str]:
    """The names that a statement of a module or class defines."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return {node.name}
    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def test_every_file_exists() -> None:
    named = set(re.findall(r"`((?:pslite|kvstore|launcher|tests)/[\w/.]*)`", PAGE))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_a_name_that_is_gone_is_found() -> None:
    assert exists("pslite/wire.py", "Message.nbytes")
    assert exists("pslite/wire.py", "Op.DATA")
    assert not exists("pslite/wire.py", "Message.gone")
    assert not exists("pslite/gone.py", "Message")


# One push


def stations(van: str) -> list[Event]:
    """The stations of the page, with this van's methods in place of ZmqVan's."""
    found = []
    for side, path, symbol in STATION.findall(PAGE):
        if symbol.startswith("ZmqVan.") and van == "inproc":
            path, symbol = "pslite/van/inproc.py", symbol.replace("ZmqVan", "InprocVan")
        target: Any = importlib.import_module(path[:-3].replace("/", "."))
        for part in symbol.split("."):
            target = getattr(target, part)
        found.append((side, target.__code__))
    return found


class Job:
    """A scheduler, a server with its store, and two workers whose stores have the key w."""

    def __init__(self, van: str, directory: Path) -> None:
        if van == "inproc":
            cluster = InprocCluster(workers=2, servers=1, resend_timeout=60)
            self.offices = cluster.offices
        else:
            root = f"ipc://{directory}/scheduler.sock"
            places = [("scheduler", None), ("server", 0), ("worker", 0), ("worker", 1)]
            configs = [
                Config(role, 2, 1, root, rank=rank, job="traced", job_dir=str(directory), resend_timeout=60)
                for role, rank in places
            ]
            self.offices = [Postoffice(config) for config in configs]

    def __enter__(self) -> Job:
        run_all([office.start for office in self.offices])
        self.service = Service(self.offices[1])
        self.stores: list[DistStore] = run_all([partial(self._store, office) for office in self.offices[2:]])
        return self

    def _store(self, office: Postoffice) -> DistStore:
        store = DistStore("dist_sync", office)
        store.init("w", np.zeros_like(VALUE))
        return store

    def push(self, trace: Trace | None = None) -> None:
        """Both workers push; only worker 0's push, which completes the round, is traced."""
        other = self.stores[1].push("w", VALUE)
        wait_until(lambda: "parked=1" in repr(self.service.store))
        with ExitStack() as stack:
            if trace is not None:
                stack.enter_context(trace.recording(self.offices))
            self.stores[0].push("w", VALUE).wait()
        other.wait()

    def __exit__(self, *_: object) -> None:
        for office in reversed(self.offices):
            office.close()


class Trace:
    """What the threads that are started meanwhile, and this one, enter of some functions."""

    def __init__(self, codes: set[CodeType]) -> None:
        self.events: list[Event] = []
        self._codes = codes
        self._sides: dict[int, str] = {}  # by thread; empty while nothing is recorded

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        side = self._sides.get(threading.get_ident())
        if side is not None and event == "call" and frame.f_code in self._codes:
            self.events.append((side, frame.f_code))

    @contextmanager
    def watching_new_threads(self) -> Iterator[None]:
        threading.setprofile(self._note)
        try:
            yield
        finally:
            threading.setprofile(None)

    @contextmanager
    def recording(self, offices: list[Postoffice]) -> Iterator[None]:
        threads = {office.name: office._shell._thread.ident or 0 for office in offices}
        sides = {threading.get_ident(): "worker", threads["worker 0"]: "worker", threads["server 0"]: "server"}
        previous = sys.getprofile()
        sys.setprofile(self._note)
        self._sides = sides
        try:
            yield
        finally:
            self._sides = {}
            sys.setprofile(previous)


@pytest.mark.parametrize("van", ["inproc", pytest.param("zmq", marks=pytest.mark.sockets)])
def test_a_push_passes_its_stations_in_this_order(van: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "BEAT_INTERVAL", 3600.0)  # no other message meanwhile
    expected = stations(van)
    assert len(expected) > 30
    trace = Trace({code for _, code in expected})
    with trace.watching_new_threads(), Job(van, tmp_path) as job:
        job.push(trace)
    entered = [event for event in dict.fromkeys(trace.events) if event in expected]  # of several calls the first
    assert shown(entered) == shown(expected)
    assert entered == expected


def shown(events: list[Event]) -> list[str]:
    return [f"{side}: {code.co_name}" for side, code in events]


# Its headers


def test_the_headers_are_those_of_now() -> None:
    sent: list[tuple[str, str, list[Any]]] = []

    def look(sender: str, receiver: str, message: Message) -> int:
        sent.append((sender, receiver, encode(message)))
        return 1

    with Job("inproc", Path()) as job:
        job.offices[0].van.hub.fault = look  # type: ignore[attr-defined]
        job.push()
    [request] = [frames for *ends, frames in sent if ends == ["worker 0", "server 0"]]
    [reply] = [frames for *ends, frames in sent if ends == ["server 0", "worker 0"]]
    assert [len(frame) for frame in request[1:]] == [131072], "the frames that the page names"
    assert len(reply) == 1, "the reply is its header only"
    rows = FIELD.findall(PAGE)
    assert [name for _, name, _, _ in rows] == field_names()
    for frames, column in ((request, 2), (reply, 3)):
        header = msgpack.unpackb(frames[0])
        assert masked(header) == masked([ast.literal_eval(row[column]) for row in rows])


def field_names() -> list[str]:
    """Magic and version, the fields of a message up to its body, and what describes the arrays."""
    names = [field.name for field in fields(Message)]
    return ["magic", "version", *names[: names.index("body") + 1], "table", "places", "pack"]


def masked(header: list[Any]) -> dict[str, Any]:
    named = dict(zip(field_names(), header, strict=True))
    return {name: type(value) if name in VOLATILE else value for name, value in named.items()}
