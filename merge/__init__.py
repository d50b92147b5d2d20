"""This folder opens and checks a pair of checkpoints, and holds the one formula that moves along the line between them."""
