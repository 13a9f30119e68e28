"""Travels with `add_local_python_source`."""

ANSWER = 42


class OwnError(Exception):
    """An exception class that client and container both know."""
