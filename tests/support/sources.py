"""This parses sources for the tests that read them, each source once."""

import ast
import functools


@functools.cache
def parsed(source: str) -> ast.Module:
    """Return the tree of a source, which no test changes."""
    return ast.parse(source)
