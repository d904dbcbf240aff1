"""Scripts that run in the interpreters of peers: they import numpy and the peer, nothing of this package."""
