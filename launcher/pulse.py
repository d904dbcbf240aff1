"""Whether the other end of a carrier is there still. No I/O; time is an argument."""

from __future__ import annotations

_HELD_UP = 1.0  # seconds between two looks, after which it was we who did not hear


class Pulse:
    """It is lost when nothing was heard for ``silence`` seconds, while we were listening."""

    def __init__(self, silence: float, now: float) -> None:
        self._silence = silence
        self._heard = self._looked = now
        self._paused = False

    def heard(self, now: float) -> None:
        """Something has come."""
        self._heard, self._paused = now, False

    def pause(self) -> None:
        """The other end has said that nothing will come for a while."""
        self._paused = True

    def is_lost(self, now: float) -> bool:
        """To be asked several times a second: a judge that was held up itself begins anew."""
        if now - self._looked > _HELD_UP or self._paused:
            self._heard = now
        self._looked = now
        return now - self._heard > self._silence
