"""What workers and servers of a store say to each other, beside the pushes and pulls."""

from __future__ import annotations

DATA_APP = 0  # KVWorker to KVServer
CONTROL_APP = 1  # collective settings: body is [what, value]
USER_APP = 2  # kv.send_command_to_servers

INIT, DENSE = 1, 0  # KVMeta.cmd of requests on DATA_APP; meta of INIT is {key on the wire: [user's key, is split]}
