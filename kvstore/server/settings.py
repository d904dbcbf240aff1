"""What is the same for all keys: the store's type, and the rule of updates with its hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvstore.compressing import check_codec
from kvstore.compression import Codec
from kvstore.keys import Key
from kvstore.rules import OptimizerRule, Rule, continuing, from_wire, wire_of
from kvstore.spec import check_whole
from pslite.errors import PSError

from .agreement import Agreement
from .members import Members
from .ticket import Ticket


class Settings:
    """Collective settings, by agreement, and each worker's changes of hyper-parameters.

    A change has a number, counted by each worker. In dist_sync a worker's contributions use its own latest change, and
    a round uses what its lowest rank's contribution does; in dist_async the highest number counts from its arrival on.
    """

    def __init__(self, split_key: Callable[[], Key | None], members: Members) -> None:
        self.sync = True
        self._members = members  # kept along with the settings
        self._split_key = split_key  # a key that is split over the servers, if there is one
        self._rule: Rule | None = None  # as agreed
        self._changed: dict[int, Rule] = {}  # by rank; in dist_async all the same
        self.resumed: Rule | None = None  # was in force before a restart, if none has been set since
        self._newest = 0  # number of the change that counts in dist_async
        self._agreement = Agreement(self._adopt)
        self.on_decider_gone = self._agreement.on_decider_gone
        self.missing = self._agreement.missing

    def rule_of(self, rank: int) -> Rule | None:
        """The rule for what this worker pushes now."""
        return self._changed.get(rank if self.sync else 0, self._rule)

    def agree(self, token: Any, rank: int, what: str, value: Any) -> list[Ticket]:
        """``what`` must be the same on every rank: rank 0 decides, the others wait for it and are compared."""
        return self._agreement.say(Ticket(token, rank), what, value)

    def change(self, rank: int, number: int, wire: Any) -> None:
        """A worker's ``number``-th change of hyper-parameters; no effect if rank 0 has set another rule meanwhile."""
        if not (isinstance(self._rule, OptimizerRule) and self._agreement.follows(rank, "rule")):
            return
        rule = self._rule.changed(wire)
        if self.sync:
            self._changed[rank] = rule
        elif number > self._newest:
            self._newest, self._changed[0] = number, rule

    def to_wire(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "type": "sync" if self.sync else "async",
            "rule": wire_of(self._rule or self.resumed),
            "changed": {rank: rule.to_wire() for rank, rule in self._changed.items()},
        }

    def to_kept(self, number: Callable[[Rule | None], int]) -> dict[str, Any]:
        """All of it as plain data, for ``from_kept``; ``number``: what a successor finds a rule by."""
        return {
            "sync": self.sync,
            "rule": number(self._rule),
            "resumed": number(self.resumed),
            "changed": {rank: number(rule) for rank, rule in self._changed.items()},
            "newest": self._newest,
            "agreed": self._agreement.to_kept(),
            "late": self._members.to_kept(),
        }

    def from_kept(self, kept: dict[str, Any], rule: Callable[[int], Rule | None]) -> None:
        """Go on with the settings of a predecessor."""
        changed = {rank: rule(number) for rank, number in kept["changed"].items()}
        self.sync, self._newest = kept["sync"], kept["newest"]
        self._rule, self.resumed = rule(kept["rule"]), rule(kept["resumed"])
        self._changed = {rank: own for rank, own in changed.items() if own is not None}
        self._agreement.from_kept(kept["agreed"])
        self._members.from_kept(kept["late"])

    def _adopt(self, what: str, value: Any) -> PSError | None:
        """Make a setting count from now on, or say why it cannot."""
        if what == "type":
            self.sync = value == "sync"
            return None
        try:
            if what == "compression":
                codec = None if value[0] is None else Codec.from_wire(value[0])
                check_codec(codec, self._split_key())
                return None
            rule = continuing(self.resumed, from_wire(value))
            if rule is not None and not rule.splits:
                check_whole(rule.what, "set after init", self._split_key())
        except PSError as error:
            return error
        self._rule, self._changed, self._newest = rule, {}, 0
        self.resumed = self.resumed if rule is None else None
        return None

    def __repr__(self) -> str:
        return f"{'sync' if self.sync else 'async'} {'assign' if self._rule is None else self._rule.what}"
