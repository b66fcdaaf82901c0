"""Graphs as text that reads like Python: aligned, with shapes and the user's line, and without what changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .graph import Graph, Node

_NEUTRAL = {"stride": (1, 1), "dilation": (1, 1), "padding": ((0, 0), (0, 0)), "groups": 1, "keepdims": False}
_PAIRS = ("stride", "dilation", "padding", "window")
NAME, CALL, SPEC, SOURCE = 32, 112, 40, 76  # widest columns, in characters; what is longer sticks out or is cut


def text(graph: Graph) -> str:
    """A line for each state, constant and node. Attributes that change nothing (a stride of 1, no padding, None) are left
    out, and equal pairs are one number, as the functions take them."""
    rows = list(lines(graph))
    left = min(max((len(name) for name, *_ in rows), default=0), NAME)
    body = [(f"    {name:<{left}} = {call}" if name else f"    {call}", spec, source) for name, call, spec, source in rows]
    head = f"def {graph.name}({', '.join(v.name for v in graph.inputs)}):", ", ".join(v.spec for v in graph.inputs), ""
    table = [head, *body, (f"    return {', '.join(v.name for v in graph.outputs)}", "", "")]
    wide = min(max(len(row[0]) for row in table), CALL)
    specs = min(max(len(row[1]) for row in table), SPEC)
    made = []
    for call, spec, source in table:
        mark = "  # " if spec or source else ""
        made.append(f"{call:<{wide}}{mark}{spec:<{specs}}  {source}".rstrip())
    return "\n".join(made)


def lines(graph: Graph) -> Iterator[tuple[str, str, str, str]]:
    """(assigned to, expression, shapes, user's line)"""
    for value in graph.states:
        yield value.name, "state()", value.spec, ""
    for value, array in graph.constants.items():
        yield value.name, _short(repr(array.item())) if array.size == 1 else "constant()", value.spec, ""
    for node in graph.nodes:
        yield (
            ", ".join(v.name for v in node.outputs),
            call(node),
            ", ".join(v.spec for v in node.outputs),
            _short(node.source(), SOURCE),
        )


def statement(node: Node) -> str:
    return f"{', '.join(v.name for v in node.outputs)} = {call(node)}" if node.outputs else call(node)


def call(node: Node) -> str:
    """The op call as a reader would write it; a chain as what it computes."""
    names = [v.name for v in node.inputs]
    return _nested(names, node.attrs["program"]) if "program" in node.attrs else _call(node.op.name, names, notable(node))


def notable(node: Node) -> dict[str, Any]:
    """The attributes that say something."""
    shown = {k: v for k, v in node.attrs.items() if v is not None and (k not in _NEUTRAL or v != _NEUTRAL[k])}
    return {k: _one_for_all(v) if k in _PAIRS else v for k, v in shown.items()}


def _call(name: str, operands: Sequence[str], attrs: Mapping[str, Any]) -> str:
    return f"{name}({', '.join([*operands, *(f'{k}={_short(repr(v))}' for k, v in attrs.items() if v is not None)])})"


def _nested(names: list[str], program: Sequence[tuple]) -> str:
    """A chain's steps as one nested expression; with names of their own where a step is read twice."""
    read = [operand for _, operands, _ in program for operand in operands]
    texts: list[str] = list(names)
    named: list[str] = []
    for name, operands, attrs in program:
        step = _call(name, [texts[o] for o in operands], dict(attrs))
        if read.count(len(texts)) > 1:
            named.append(f"t{len(named)} = {step}")
            step = f"t{len(named) - 1}"
        texts.append(step)
    return "; ".join([*named, texts[-1]])


def _one_for_all(value: Any) -> Any:
    """3 for (3, 3) and for ((3, 3), (3, 3))."""
    if isinstance(value, tuple) and value and all(v == value[0] for v in value):
        return _one_for_all(value[0])
    return value


def _short(words: str, most: int = 60) -> str:
    return words if len(words) <= most else words[: most - 3] + "..."


__all__ = ["call", "lines", "notable", "statement", "text"]
