"""Where a worker goes on that was restarted: steps, and the numbers of its pushes.

The pushes of a key are numbered, ``step << 32 | n`` for the n-th one in a step that ``kv.step()`` counts. The
servers know the last number that they have of each key and worker. A restarted worker redoes the lowest step that may
be due from it; what was pushed of it before is answered, and not applied again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .ledger import MAX_AHEAD
from .records import Record
from .steps import step_of


class Resumed:
    """What the servers have of this worker. ``taken``: by key on the wire, the number of its last push; 0 for none.

    A script that does not call ``kv.step()`` has the numbers of one long step: then a step is one push of each key. A
    key whose pushes are further behind than a worker may be ahead of a server is one that is not pushed in each step.
    """

    def __init__(self, taken: Mapping[int, int]) -> None:
        self._taken = taken
        newest = max(taken.values(), default=0)
        self.counts_steps = step_of(newest) > 0
        steps = [self._step_of(number) for number in taken.values()]
        latest = max(steps, default=0)
        self.step = min((step for step in steps if step >= latest - MAX_AHEAD), default=0)
        self._recent = latest - MAX_AHEAD

    def _step_of(self, number: int) -> int:
        return step_of(number) if self.counts_steps else number

    def apply(self, records: Iterable[Record]) -> None:
        """Let the next push of each key have the number that is due."""
        if self.counts_steps:
            return  # numbers follow from the step alone
        for record in records:
            last = min(self._taken.get(piece.wire, 0) for piece in record.pieces)
            record.pushes = self.step if last >= self._recent else last
