"""ps-lite's own test programs. Each module has functions for a process that has joined, and runs as a script, too."""
