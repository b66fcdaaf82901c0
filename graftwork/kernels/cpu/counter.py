"""Counters."""


def increment(*counters, out=None) -> None:
    """counter += 1 in place, for 0-d arrays of any number type."""
    for counter in counters:
        counter += 1
