"""What is done about messages that no peer of ours sends: they are counted, and logged now and then. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from pslite.wire import Link

MAX_STRIKES = 16  # bad messages of an incoming link in a row; after them nothing more is taken from it
MAX_LINKS = 1024  # that are counted at a time; who makes more of them has the oldest forgotten
LINES = 5  # of the log at once
LINE_EVERY = 10.0  # seconds: one more line in each
LONGEST_LINE = 500  # characters


@dataclass
class Strikes:
    """The bad messages of each link. Changed under the postoffice's lock only."""

    total: int = 0
    _of: dict[Link, int] = field(default_factory=dict)  # the oldest first
    _lines: float = LINES  # that may be logged now
    _counted_at: float = 0.0
    _unsaid: int = 0  # lines that were left out

    def count(self, link: Link) -> bool:
        """A bad message came; True if it was one too many. Links that we made ourselves are only counted."""
        self.total += 1
        if not isinstance(link, bytes):
            return False
        self._of[link] = self._of.get(link, 0) + 1
        if len(self._of) > MAX_LINKS:
            del self._of[next(iter(self._of))]
        return self._of.get(link, 0) >= MAX_STRIKES

    def clear(self, link: Link) -> None:
        """A good message came."""
        if self._of:
            self._of.pop(link, None)

    def line(self, now: float, text: str) -> str | None:
        """What to log about it, if anything: peers must not fill the disk."""
        self._lines = min(LINES, self._lines + (now - self._counted_at) / LINE_EVERY)
        self._counted_at = now
        if self._lines < 1:
            self._unsaid += 1
            return None
        self._lines -= 1
        more = f" ({self._unsaid} more lines like this were left out)" if self._unsaid else ""
        self._unsaid = 0
        return text + more


def printable(text: str) -> str:
    """Text of a peer on one line of the log: nothing in it can look like another line, or move the cursor."""
    shown = text[:LONGEST_LINE]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in shown)
    return shown + ("..." if len(text) > LONGEST_LINE else "")
