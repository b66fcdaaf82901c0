"""Graph passes, one file each: functions `graph -> graph` that make it smaller or faster and change no result.

`PASSES` is their order. Plugins add theirs through the hook `register_passes`; they run before the last clean-up.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import ConfigError, GraphError
from ..graph import Graph
from .batch_norm import fold_batch_norm
from .chain import fuse_elementwise
from .common_subexpression import merge_common_subexpressions
from .constant import fold_constants
from .dead_code import remove_dead_code
from .epilogue import fuse_epilogues
from .padding import fold_padding
from .precision import lower_precision

Pass = Callable[[Graph], Graph]

PASSES: dict[str, Pass] = {
    "dead_code": remove_dead_code,
    "constants": fold_constants,
    "common_subexpressions": merge_common_subexpressions,
    "padding": fold_padding,
    "batch_norm": fold_batch_norm,
    "precision": lower_precision,
    "epilogues": fuse_epilogues,
    "elementwise": fuse_elementwise,
    "clean_up": remove_dead_code,
}


def register(name: str, function: Pass) -> None:
    """Add a pass before the clean-up. Raises ConfigError if the name is taken."""
    if name in PASSES:
        raise ConfigError(f"a pass named {name!r} exists already; choose another name")
    last = PASSES.pop("clean_up")
    PASSES[name] = function
    PASSES["clean_up"] = last


def unregister(name: str) -> None:
    """Take a pass out again (plugins that are unloaded, tests)."""
    PASSES.pop(name, None)


def optimise(graph: Graph) -> Graph:
    """Run all passes in order, checking the graph after each. A pass that breaks it is named in the GraphError."""
    for name, function in PASSES.items():
        before = len(graph.nodes)
        result = function(graph)
        if not isinstance(result, Graph):
            raise GraphError(f"pass {name!r} returned a {type(result).__qualname__}, expected the graph to go on with")
        try:
            result.check()
        except GraphError as error:
            raise GraphError(f"pass {name!r} broke the graph: {error}") from error
        if len(result.nodes) != before:
            result.notes.append(f"{name}: {before} -> {len(result.nodes)} nodes")
        graph = result
    graph.renumber()
    return graph


__all__ = ["PASSES", "Pass", "optimise", "register", "unregister"]
