"""What push returns, and pull with ``wait=False``: a call that may not be done yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Handle:
    """A call in flight. ``wait`` may be called any number of times, from any thread."""

    __slots__ = ("__weakref__", "_done", "_result", "_wait", "reported")

    def __init__(
        self, wait: Callable[..., Any] | None = None, done: Callable[[], bool] | None = None, result: Any = None
    ) -> None:
        self._wait = wait
        self._done = done
        self._result = result
        self.reported = wait is None  # whether the user has seen how it ended; only ever becomes True

    def wait(self, *timeout: float | None) -> Any:
        """Wait until the call is done and return its result; raises what made it fail, every time.

        ``timeout``: seconds, None for ever; without it PSLITE_TIMEOUT. A RequestTimeout leaves the call in flight.
        """
        if self._wait is None:
            return self._result
        try:
            result = self._wait(*timeout)
        except TimeoutError:
            raise
        except BaseException:
            self.reported = True
            raise
        self.reported = True
        return result

    def done(self) -> bool:
        """Whether ``wait`` would return (or raise) at once."""
        return self._done is None or self._done()

    def exception(self, *timeout: float | None) -> Exception | None:
        """The error that made the call fail, or None; waits like ``wait``, and raises RequestTimeout like it."""
        try:
            self.wait(*timeout)
        except Exception as error:  # whatever the call ended with is what was asked for
            if not self.done():
                raise
            return error
        return None

    def __repr__(self) -> str:
        return f"<Handle {'done' if self.done() else 'in flight'}>"


def together(handles: Sequence[Handle]) -> Handle:
    """One handle for what a call has become; its result is that of the last, and it ends with the first error."""

    def failed() -> Handle | None:
        return next((handle for handle in handles if handle.done() and handle.exception() is not None), None)

    def wait(*timeout: float | None) -> Any:
        first = failed()
        return first.wait() if first is not None else [handle.wait(*timeout) for handle in handles][-1]

    if len(handles) == 1:
        return handles[0]
    return Handle(wait, lambda: all(handle.done() for handle in handles) or failed() is not None)
