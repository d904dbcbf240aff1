"""What is the same for all keys: the store's type, and the rule of updates with its hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvstore.compressing import check_codec
from kvstore.compression import Codec
from kvstore.keys import Key
from kvstore.rules import OptimizerRule, Rule, continuing, from_wire, wire_of
from kvstore.spec import check_whole

from .agreement import Agreement
from .members import Members
from .ticket import Ticket


class Settings:
    """Collective settings, by agreement, and each worker's changes of hyper-parameters.

    A change has a number, counted by each worker. In dist_sync a worker's contributions use the rule that it has agreed
    to last, with its own latest change, and a round uses what its lowest rank's contribution does: so rounds without
    rank 0 have one rule on all servers, whichever of them it had told of the next. In dist_async the highest number
    counts from its arrival on.
    """

    def __init__(self, split_key: Callable[[], Key | None], members: Members) -> None:
        self.sync = True
        self._members = members  # kept along with the settings
        self._split_key = split_key  # a key that is split over the servers, if there is one
        self._rule: Rule | None = None  # as agreed
        self._changed: dict[int, Rule | None] = {}  # by rank: its own, if it is another one; in dist_async all the same
        self.resumed: Rule | None = None  # was in force before a restart, if none has been set since
        self._newest = 0  # number of the change that counts in dist_async
        self._agreement = Agreement(self._adopt, self._follow)
        self.on_lead = self._agreement.on_lead
        self.missing = self._agreement.missing

    def rule_of(self, rank: int) -> Rule | None:
        """The rule for what this worker pushes now."""
        return self._changed.get(rank if self.sync else 0, self._rule)

    @property
    def rule(self) -> Rule | None:
        """The rule for what the lead pushes now."""
        return self.rule_of(self._members.lead)

    def agree(self, token: Any, rank: int, what: str, value: Any) -> list[Ticket]:
        """``what`` must be the same on every rank: the lead decides, the others wait for it and are compared."""
        return self._agreement.say(Ticket(token, rank), what, value)

    def change(self, rank: int, number: int, wire: Any) -> None:
        """A worker's ``number``-th change of hyper-parameters.

        No effect in dist_async if the lead has set another rule meanwhile.
        """
        own = self.rule_of(rank) if self.sync else self._rule
        if not isinstance(own, OptimizerRule):
            return
        if self.sync and rank in self._agreement.heard("rule"):
            self._changed[rank] = own.changed(wire)
        elif not self.sync and number > self._newest and self._agreement.follows(rank, "rule"):
            self._newest, self._changed[0] = number, own.changed(wire)

    def to_wire(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "type": "sync" if self.sync else "async",
            "rule": wire_of(self._rule or self.resumed),
            "changed": {rank: wire_of(rule) for rank, rule in self._changed.items()},
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
        self._changed = {rank: rule(number) for rank, number in kept["changed"].items()}
        self.sync, self._newest = kept["sync"], kept["newest"]
        self._rule, self.resumed = rule(kept["rule"]), rule(kept["resumed"])
        self._agreement.from_kept(kept["agreed"])
        self._members.from_kept(kept["late"])

    def _adopt(self, what: str, value: Any) -> Rule | None:
        """Make a setting count from now on. Raises PSError if it cannot."""
        if what == "type":
            self.sync = value == "sync"
            return None
        if what == "compression":
            codec = None if value[0] is None else Codec.from_wire(value[0])
            check_codec(codec, self._split_key())
            return None
        rule = continuing(self.resumed, from_wire(value))
        if rule is not None and not rule.splits:
            check_whole(rule.what, "set after init", self._split_key())
        self._changed = {rank: self.rule_of(rank) for rank in self._agreement.heard("rule")} if self.sync else {}
        self._rule, self._newest = rule, 0
        self.resumed = self.resumed if rule is None else None
        return rule

    def _follow(self, what: str, rank: int, rule: Rule | None, newest: bool) -> None:
        """A rank has come to a setting that it had not heard of before."""
        if what != "rule" or not self.sync:
            return
        if newest:
            self._changed.pop(rank, None)
        elif rule is not None:
            self._changed[rank] = rule

    def __repr__(self) -> str:
        return f"{'sync' if self.sync else 'async'} {'assign' if self._rule is None else self._rule.what}"
