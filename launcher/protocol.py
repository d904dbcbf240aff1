"""What the launcher and an agent say to each other: JSON objects, one per line, over the agent's stdin and stdout.

Orders, to the agent:

    {"do": "open", "job": ID, "transport": "ipc" | "tcp", "address": ADDRESS | null, "towards": [HOST],
        "interface": NAME | null}         listen for the scheduler, which will be on this host; answered by "opened".
                                          At this address, else the interface's, else that on the way to these hosts
    {"do": "start", "job": ID, "root": ADDRESS, "cwd": DIRECTORY | null, "keys": {NAME: CONTENT}, "grace": SECONDS,
        "max_restarts": N, "shrinks": BOOL, "replicas": N,
        "processes": [{"id", "role", "rank", "host", "argv", "env", "starts", "restarts"?}]}
                                          once; those that do not start now are servers, for "scale";
                                          "restarts": how often other agents have started it again
    {"do": "add", "process": {...}, "keys": {...}}         one more, while the job runs
    {"do": "signal", "signal": N}         to all process groups; from the first one on nothing is started again
    {"do": "kill", "id", "pid", "signal": N}         to this process itself, unless it has ended
    {"do": "scale", "servers": N}         have so many processes serve; answered by "scaled"
    {"do": "look", "cwd": DIRECTORY}         whether a job can run here; answered by "looked"
    {"do": "reach", "addresses": [[HOST, PORT]]}         connect to each, once; answered by "reached"
    {"do": "beat"}         twice a second, through a carrier, by either end; silence is a lost connection
    {"do": "pause"}         no beats will come until the next one

Events, to the launcher. Each process has one "failed", or one "started" and later one "exited". Between these two there
may be "died", each followed by another "started" or by "failed". A server process may come and go more than once:

    {"event": "hello", "protocol": N, "came_to": ADDRESS | null, "came_from": ADDRESS | null}
                                                         first; by ssh, the addresses of the connection's two ends
    {"event": "placed", "directory": PATH}         it has made the job's directory on this host
    {"event": "opened", "root": ADDRESS}         the scheduler will listen there; or:
    {"event": "refused", "error": TEXT}         it cannot, or it cannot make the directory
    {"event": "started", "id", "pid", "host"?}         its pid is also its process group; "host": where, if the
                                                         agent has several
    {"event": "failed", "id", "code": 126 | 127, "error": TEXT}         it could not be started
    {"event": "output", "id", "stream": "stdout" | "stderr", "lines": [TEXT]}
    {"event": "died", "id", "code"}         negative, a signal's; it is being started again
    {"event": "exited", "id", "code", "record"?}         negative for a signal; all it wrote came before;
                                                         "record": its error record, if it left one
    {"event": "lost", "role", "rank", "pid"}         the scheduler has given it up; it may be another agent's
    {"event": "scaled", "servers": N, "moved": [[RANK, FROM, TO, SECONDS]], "error": TEXT}
                                                         N serve now; "error": why these are not all
    {"event": "looked", "versions": {NAME: TEXT}, "time": SECONDS, "problem": TEXT}         of its clock; or "problem"
    {"event": "reached", "errors": [TEXT]}         for each address; "" if it could be connected to
    {"event": "notice", "text"}         for the user
    {"event": "beat"}

The end of the orders ends everything: the agent stops what still runs, removes the job's directory and exits.
"""

from __future__ import annotations

import json
from typing import Any

PROTOCOL = 2  # changes with what is above; both ends must have the same
BEAT = 0.5  # seconds

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """One line. JSON's ASCII escapes carry undecodable bytes (surrogates) in arguments and output unchanged."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


class MessageReader:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # of an unfinished line
        self._begun = False  # a message has come
        self.noise: list[str] = []  # lines before the first message: what a host prints when somebody logs in

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete after these bytes."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._rest, lines[0]])
            self._rest = []
        self._rest.append(rest)
        return [json.loads(line) for line in lines if self._is_message(line)]

    def _is_message(self, line: bytes) -> bool:
        self._begun = self._begun or line.startswith(b'{"')
        if not self._begun:
            self.noise.append(line.decode(errors="replace"))
        return self._begun
