"""Measured choices on GPUs: what `graftwork tune --device cuda` found, kept by chip, driver, op, shape and dtype.

`choose` is asked while a call is described, once for each form of a call, so that a table costs nothing afterwards. `tune`
times the options of every question that a call asks, one question after the other, and returns the times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ...folders import cache_folder
from .. import tables
from . import launch


class Question(NamedTuple):
    """What a description asked: the options, and which one the rule says."""

    options: tuple[str, ...]
    usual: str


class Trial:
    """A description under given choices; remembers what else was asked, in order."""

    def __init__(self, choices: Mapping[str, str]):
        self.choices, self.asked = choices, dict[str, Question]()


_trial: Trial | None = None


def kept_at() -> Path:
    """The file with this machine's own choices."""
    return cache_folder("tuned-cuda.json")


@cache
def table() -> dict[str, str]:
    """Key -> option, read once a process."""
    return tables.read(kept_at())


def keep(choices: Mapping[str, str | None], path: Path | None = None) -> Path:
    """Add choices to this machine's table (or another file); None takes one out. Calls that were made already keep theirs."""
    path = tables.keep(choices, path or kept_at())
    table.cache_clear()
    return path


def choose(chip: str, what: str, options: Sequence[str], usual: str) -> str:
    """The tuned option for a question on a chip, if there is one that is (still) among the options, else the usual one."""
    key = f"{chip}: {what}"
    if _trial is not None:
        _trial.asked.setdefault(key, Question(tuple(options), usual))
        found = _trial.choices.get(key)
    else:
        found = table().get(key) if chip else None
    return found if found is not None and found in options else usual


def describe(fn: Callable, arrays: Sequence[Any], out: Any, attrs: Mapping[str, Any]) -> launch.Description:
    """The steps of one kernel call with one output, made anew."""
    everything = (*arrays, out)
    machine = launch.machine_of(everything)
    builder = launch.Builder(len(everything), machine.capability, machine.processors, machine.chip)
    views = [launch.view_of(i, a) for i, a in enumerate(everything)]
    fn.describe(builder, *views[:-1], out=views[-1], **attrs)  # type: ignore[attr-defined]
    return builder.finish()


def under(choices: Mapping[str, str], made: Callable[[], Any]) -> tuple[Any, dict[str, Question]]:
    """What `made()` returns when these choices, and none of the table, hold; and all questions that it asked."""
    global _trial
    before, _trial = _trial, Trial(choices)
    try:
        return made(), _trial.asked
    finally:
        _trial = before


def tune(made: Callable[[], Any], seconds: Callable[[Any], float]) -> dict[str, tuple[str, dict[str, float]]]:
    """For each question of a call, in the order it asks them: the usual option, and seconds by option.

    made() makes the call's description, seconds(description) times it. Each question is settled before the next one, which
    may depend on it: first the method, then the tiles of that method.
    """
    settled: dict[str, str] = {}
    found: dict[str, tuple[str, dict[str, float]]] = {}
    while True:
        _, asked = under(settled, made)
        key = next((k for k in asked if k not in settled), None)
        if key is None:
            return found
        times = {}
        for option in asked[key].options:
            description, _ = under({**settled, key: option}, made)
            times[option] = seconds(description)
        found[key] = asked[key].usual, times
        settled[key] = min(times, key=times.__getitem__)
