"""Whole jobs in one thread, with a virtual clock and one seeded source of randomness: see docs/reliability.md."""
