#!/usr/bin/env python3
"""``pslite chaos`` from a source checkout, nothing installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kvstore.chaos.__main__ import main

if __name__ == "__main__":
    sys.exit(main(prog="chaos.py"))
