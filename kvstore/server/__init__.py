"""What runs in a server process: the store and the shell around it."""
