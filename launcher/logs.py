"""Lines of output: cut from bytes, marked with who wrote them, kept for the report, and filed."""

from __future__ import annotations

import codecs
import os
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from .spec import ProcessSpec

_BREAK = re.compile(r"\r\n|\n|\r")
_LONGEST_LINE = 1 << 16  # characters: a longer one is cut, for memory is bounded
_TAIL = 20
_RESET = "\x1b[0m"
_WORKER_COLORS = ("36", "32", "33", "35", "34", "96", "92", "93", "95", "94")  # by rank
_ROLE_COLORS = {"scheduler": "90", "server": "90"}


class LineSplitter:
    """Cuts the bytes of a pipe into lines at ``\\n``, ``\\r\\n`` and ``\\r``, however the reads fall.

    A character split between two reads stays whole; bytes that are no UTF-8 pass through as surrogates.
    A progress bar's lone ``\\r`` ends a line, unless that line is empty.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._rest = ""  # the unfinished line; may end in \r, whose \n may still come

    def feed(self, data: bytes, final: bool = False) -> list[str]:
        """The lines that are complete after these bytes; with ``final`` also the unfinished one."""
        text = self._rest + self._decoder.decode(data, final)
        lines, start = [], 0
        for match in _BREAK.finditer(text):
            if match.end() == len(text) and match[0] == "\r" and not final:
                break
            if match.start() > start or match[0] != "\r":
                lines.append(text[start : match.start()])
            start = match.end()
        self._rest = text[start:]
        if self._rest and (final or len(self._rest) > _LONGEST_LINE):
            lines.append(self._rest)
            self._rest = ""
        return lines


def wants_color(choice: str, environ: Mapping[str, str], is_terminal: bool) -> bool:
    """Whether to colour: ``--color`` first, then NO_COLOR, FORCE_COLOR, and whether it is a terminal."""
    if choice != "auto":
        return choice == "always"
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return is_terminal and environ.get("TERM") != "dumb"


class Prefixer:
    """Marks lines with who wrote them, aligned: ``[worker 0]  text``, ``[scheduler] text``."""

    def __init__(self, processes: Sequence[ProcessSpec], *, prefix: bool, timestamps: bool) -> None:
        self._timestamps, self._prefix = timestamps, prefix
        self._width = max(len(p.label) for p in processes) + 2
        self._labels: list[str] = []
        self._colors: list[str] = []
        for process in processes:
            self.add(process)

    def add(self, process: ProcessSpec) -> None:
        """One more process."""
        self._labels.append(f"[{process.label}]".ljust(self._width) + " " if self._prefix else "")
        self._colors.append(_ROLE_COLORS.get(process.role, _WORKER_COLORS[process.rank % len(_WORKER_COLORS)]))

    def line(self, index: int, text: str, color: bool, now: float) -> str:
        """The line to show; ``now`` is seconds since the epoch."""
        head = self._labels[index]
        if self._timestamps:
            head = time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1000):03d} {head}"
        if head and color:
            head = f"\x1b[{self._colors[index]}m{head}{_RESET}"
        return head + text


class Tails:
    """The last lines that each process wrote to stderr."""

    def __init__(self, count: int) -> None:
        self._lines: list[deque[str]] = [deque(maxlen=_TAIL) for _ in range(count)]

    def grow(self) -> None:
        """One more process."""
        self._lines.append(deque(maxlen=_TAIL))

    def add(self, index: int, lines: Sequence[str]) -> None:
        """Remember these, forget the oldest."""
        self._lines[index].extend(lines)

    def forget(self, index: int) -> None:
        """The process is started again, and what it wrote before is not about its end."""
        self._lines[index].clear()

    def of(self, index: int) -> list[str]:
        """Oldest first."""
        return list(self._lines[index])


class LogFiles:
    """``DIR/<job>/worker-0/stdout.log`` and ``stderr.log`` for each process; ``DIR/latest`` leads to the job.

    Raises OSError when they cannot be made or written.
    """

    def __init__(self, directory: str, job: str, processes: Sequence[ProcessSpec]) -> None:
        root = Path(directory)
        self._job = root / job
        self._files: list[dict[str, TextIO]] = []
        for process in processes:
            self.add(process)
        fresh = root / f".latest-{job}"
        fresh.symlink_to(job)
        os.replace(fresh, root / "latest")

    def add(self, process: ProcessSpec) -> None:
        """One more process."""
        folder = self._job / process.label.replace(" ", "-")
        folder.mkdir(parents=True)
        self._files.append({stream: _open(folder / f"{stream}.log") for stream in ("stdout", "stderr")})

    def write(self, index: int, stream: str, lines: Sequence[str]) -> None:
        """Append, without a prefix."""
        self._files[index][stream].write("".join(line + "\n" for line in lines))

    def path(self, index: int, stream: str) -> str:
        """Where that output is filed."""
        return self._files[index][stream].name

    def close(self) -> None:
        """Close all files."""
        for streams in self._files:
            for file in streams.values():
                file.close()


def _open(path: Path) -> TextIO:
    return open(path, "w", buffering=1, encoding="utf-8", errors="surrogateescape", newline="")
