"""Membership of a job: ids and groups, handshake, barriers, liveness, placement; and the shell that runs it."""

from .office import SAME_AS_CONFIG, Postoffice

__all__ = ["SAME_AS_CONFIG", "Postoffice"]
