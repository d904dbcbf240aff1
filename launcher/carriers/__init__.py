"""How an agent gets onto a host: a module for each way."""
