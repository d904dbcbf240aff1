"""What workers and servers of a store say to each other, beside the pushes and pulls."""

from __future__ import annotations

DATA_APP = 0  # KVWorker to KVServer
CONTROL_APP = 1  # what is said to all servers: settings, changes of hyper-parameters, profiling; body is [what, value]
USER_APP = 2  # kv.send_command_to_servers
REPLICA_APP = 4  # changes of a server, told to its backup: what they are, as msgpack, and arrays
CHECKPOINT_APP = 3  # checkpoints of the whole job: kv.checkpoint, what servers tell each other; body is [what, value]

# KVMeta.cmd of requests on DATA_APP.
DATA = 0  # a push, a pull, or both; meta is None, or the codecs [of what is pushed, for what is pulled], each or None
INIT = 1  # meta is {key on the wire: [user's key, is split, shape, first row, shape of the whole, is flat]}
AGAIN = "again"  # beside the keys in INIT's meta: whether those that exist already are left as they are
SAVE = 2  # pull everything of keys: meta is whether with values; that of the answer as in LOAD
LOAD = 3  # push it: meta is {key on the wire: [names of arrays, version, count]}; an array may be row ids, by its name
STASH = 4  # push what compression holds back of keys, for the lead or from it: meta is the rank whose it is
UNSTASH = 5  # pull it: meta is that rank; keys without any have no array
BUNDLE = 6  # DATA of dense keys: values lie behind each other in one array, in the answer too; meta: is it a burst
OUTCOME = 7  # of a burst that is served key by key (its answer's body is True): meta is [its timestamp, which key];
# or its timestamp alone: that answer is wanted as soon as its keys end one by one

OF_LEAD = (INIT, SAVE, LOAD)  # one worker alone makes keys, and reads and writes a server's whole state: the lowest
# that is not lost for good, so that is worker 0 while all others wait for its successor, or fail with it

HELD_AT_ONCE = 1024  # ordinals that a server's answer about what it holds is about

# KVPairs.kinds: how a value is put into arrays.
WHOLE = 0  # one array; or none, in a pull
ROWS = 1  # ids and rows; in a pull the ids alone, answered by the rows
CODED = 2  # what a codec made of a float32 array
