"""This folder takes units through the scheduler and the replicas to committed tables, and is the only one that knows Ray."""
