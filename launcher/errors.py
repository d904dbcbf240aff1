"""What a user of the launcher has to change."""

from __future__ import annotations


class UsageError(ValueError):
    """The command line cannot be carried out; the text says what to change."""
