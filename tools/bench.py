#!/usr/bin/env python3
"""``pslite bench`` from a source checkout, nothing installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kvstore.bench.__main__ import main

if __name__ == "__main__":
    sys.exit(main(prog="bench.py"))
