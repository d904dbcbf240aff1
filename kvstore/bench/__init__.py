"""The benchmark: ``python -m kvstore.bench``, which is ``pslite bench``. docs/performance.md says how to use it."""
