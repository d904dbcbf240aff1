"""Says who imports it: a library that servers should not load."""

import os

print("imported by", os.environ["DMLC_ROLE"], flush=True)
