"""Counters."""


def increment(counter, *, out=None) -> None:
    """counter += 1 in place, for a 0-d array of any number type."""
    counter += 1
