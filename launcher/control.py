"""The socket in a job's directory by which the launcher takes requests while the job runs: one line of JSON each way.

    {"workers": 6}         how many of the launcher's workers shall run
    {"servers": 2}         how many processes shall serve; answered when they do
    {"done": TEXT} or {"error": TEXT}         the answer
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UsageError
from .rendezvous import PREFIX, parent

_NAME = "control.sock"
_LONGEST = 4096  # bytes of a line
_PATIENCE = 0.5  # seconds that the launcher waits for who has connected: it has a job to look after


class Control:
    """The launcher's end. Its directory is the job's, which only this user can enter."""

    def __init__(self, directory: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(Path(directory) / _NAME))
        self._socket.listen()
        self._waiting: socket.socket | None = None  # who is answered later

    def fileno(self) -> int:
        """Readable when somebody has connected."""
        return self._socket.fileno()

    def serve(self, act: Callable[[dict[str, Any]], str | None]) -> None:
        """Take one request; ``act`` carries it out and returns what to say, or raises UsageError.

        If it returns None ``answer`` will say it; others that would be answered later are refused until then.
        """
        with contextlib.suppress(OSError), self._socket.accept()[0] as peer:
            peer.settimeout(_PATIENCE)
            try:
                request = _request(_line(peer))
                if self._waiting is not None and "servers" in request:
                    raise UsageError("the number of servers is being changed: try again when that is done")
                text = act(request)
            except UsageError as error:
                _answer(peer, "error", str(error))
                return
            if text is None:
                self._waiting = peer.dup()
            else:
                _answer(peer, "done", text)

    def answer(self, how: str, text: str) -> None:
        """Answer who waits: ``done`` or ``error``."""
        if self._waiting is not None:
            with self._waiting as peer:
                _answer(peer, how, text)
            self._waiting = None

    def close(self) -> None:
        """Take no more."""
        self.answer("error", "the job has ended")
        self._socket.close()


def ask(directory: Path, request: dict[str, Any], within: float | None = 10.0) -> str:
    """Have the launcher of a job carry out a request; returns what it says. Raises UsageError.

    ``within``: seconds that it may take; None: as long as the launcher lives.
    """
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(within)
            peer.connect(str(directory / _NAME))
            peer.sendall(json.dumps(request).encode() + b"\n")
            answer = _request(_line(peer))
    except OSError as error:
        raise UsageError(f"the launcher of {directory} does not answer: {error.strerror or error}") from None
    if "error" in answer:
        raise UsageError(str(answer["error"]))
    return str(answer.get("done", ""))


def _answer(peer: socket.socket, how: str, text: str) -> None:
    with contextlib.suppress(OSError):  # it has not waited
        peer.sendall(json.dumps({how: text}).encode() + b"\n")


def jobs() -> list[Path]:
    """The directories of this user's jobs on this host that take requests."""
    found = []
    for path in Path(parent()).glob(f"{PREFIX}*/{_NAME}"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
            if path.stat().st_uid == os.getuid():
                peer.connect(str(path))  # else its launcher is gone
                found.append(path.parent)
    return sorted(found)


def _line(peer: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) <= _LONGEST and (more := peer.recv(_LONGEST)):
        data += more
    return data


def _request(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise UsageError("a request is a line of JSON, an object")
    return request
