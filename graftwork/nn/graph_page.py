"""A graph as one self-contained HTML page: cards in layers with arrows, a table by time, the memory plan as a picture.

Nodes stand in layers, inputs at the top, every node below what it reads (Sugiyama, Tagawa and Toda, "Methods for Visual
Understanding of Hierarchical System Structures", 1981: layers, places for passing edges, order by the mean of the neighbours).
What is computed ahead of a replay, from weights only, is a list of its own.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .files import atomic_path
from .graph import Graph, Node, Value
from .graph_style import FAMILIES, SCRIPT, STYLE
from .graph_text import notable
from .profiling import kernel_of

WIDE, HIGH, ACROSS, DOWN = 236, 78, 30, 46  # pixels: of a card, and between cards
LANE = 20  # pixels for an edge that passes a layer
LONGEST = 10  # layers that an edge may cross as a line; longer ones are named on the cards they join
_FAMILIES = set(FAMILIES)
_escape = html.escape


class Spot:
    """Something in a layer: a node, an input, the results, or a place that an edge passes."""

    def __init__(self, item: Any, layer: int):
        self.item, self.layer = item, layer
        self.x = 0.0  # of the middle
        self.above: list[Spot] = []
        self.below: list[Spot] = []

    @property
    def width(self) -> int:
        return LANE if self.item is None else WIDE


class Time(NamedTuple):
    """Nanoseconds of a node and their share of all; None without measurements."""

    nanoseconds: float
    share: float


def page(source: Any, path: str | os.PathLike | None = None, times: Mapping[Node, float] | None = None) -> str:
    """The page for a Graph, or for an Executable, which adds kernels and the memory plan; written to `path` if given.

    times: nanoseconds of each node, as `Executable.run(inputs, times)` and `profiling.profile` give them.
    """
    executable = None if isinstance(source, Graph) else source
    graph = source if executable is None else source.graph
    text = _Page(graph, executable, times or {}).text()
    if path is not None:
        with atomic_path(os.fspath(path)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return text


class _Page:
    def __init__(self, graph: Graph, executable: Any, times: Mapping[Node, float]):
        self.graph, self.executable = graph, executable
        self.ahead, self.body = _split(graph)
        self.number = {node: i for i, node in enumerate(self.body)}
        self.steps: dict[Node, Any] = {}
        self.extra: list[tuple[str, float]] = []  # steps that are no nodes: packing, copies
        spent = self._spent(times)
        total = sum(spent.values()) + sum(t for _, t in self.extra)
        self.times = {n: Time(t, t / total) for n, t in spent.items()} if total else {}
        self.total = total
        self.far: dict[Node, list[Value]] = {}  # what a node reads from far above

    def _spent(self, times: Mapping[Node, float]) -> dict[Node, float]:
        """Nanoseconds by the graph's nodes; a step may stand for a node with exchanged inputs, or for none."""
        spent = {n: float(t) for n, t in times.items() if n in self.number}
        for step in [] if self.executable is None else self.executable.steps:
            made = step.node.outputs[0].node if step.node.outputs else step.node
            node = made if made in self.number else step.node
            if node in self.number:
                self.steps[node] = step
                spent[node] = float(times.get(step.node, times.get(node, 0.0)))
            else:
                self.extra.append((f"{step.node.op.name} of {step.node.inputs[0].name}", float(times.get(step.node, 0.0))))
        return spent if times else {}

    # -- the whole ---------------------------------------------------------------------------------------------------
    def text(self) -> str:
        drawing = self._drawing()
        return (
            f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{_escape(self.graph.name)}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
            f"<header><h1>{_escape(self.graph.name)}</h1><p>{self._signature()}</p>"
            f"<div class=tiles>{self._tiles()}</div></header>"
            "<main><section id=graph><div class=bar><input id=find placeholder='find an op, a name, a line' type=search>"
            "<button id=out>&minus;</button><button id=in>+</button><button id=fit>fit</button>"
            f"<span class=legend>{self._legend()}</span></div><div id=pane>{drawing}</div></section>"
            f"<aside>{self._selection()}{self._table()}{self._memory()}{self._aside()}</aside></main>"
            f"<script>const details={_json(self._details())};{SCRIPT}</script></body></html>"
        )

    def _signature(self) -> str:
        given = ", ".join(f"{v.name}: {v.spec}" for v in self.graph.inputs)
        back = [v.spec for v in self.graph.outputs]
        more = f" and {len(back) - 3} more" if len(back) > 3 else ""
        return _escape(f"({_cut(given, 160)}) \N{RIGHTWARDS ARROW} {', '.join(back[:3]) or 'nothing'}{more}")

    def _tiles(self) -> str:
        flops, weights = sum(n.flops for n in self.body), sum(v.nbytes for v in (*self.graph.states, *self.graph.constants))
        tiles = [
            (f"{len(self.body)}", "ops in a call"),
            (_count(flops, "FLOP"), "operations"),
            (_bytes(weights), "weights and state"),
        ]
        if self.total:
            tiles += [(_duration(self.total), "in kernels"), (f"{flops / self.total:.1f} GFLOP/s", "on average")]
        if self.executable is not None:
            bound = max(self.executable.bound, 1)
            arena = self.executable.arena_bytes
            tiles += [(_bytes(arena), f"arena, {arena / bound:.2f} of its lower bound")]
            tiles += [(_bytes(self.executable.ahead_bytes), "computed ahead")]
        return "".join(f"<div><b>{_escape(value)}</b>{_escape(what)}</div>" for value, what in tiles)

    def _legend(self) -> str:
        found = Counter(_family(n) for n in self.body)
        return "".join(f'<span><i class="dot f-{f}"></i>{f}</span>' for f, _ in found.most_common())

    # -- the drawing -------------------------------------------------------------------------------------------------
    def _drawing(self) -> str:
        layers, edges = self._layers()
        _order(layers)
        left = min((s.x - s.width / 2 for layer in layers for s in layer), default=0.0) - 20
        right = max((s.x + s.width / 2 for layer in layers for s in layer), default=0.0) + 20
        height = len(layers) * (HIGH + DOWN) + 20
        parts = [_edge(points) for points in edges]
        parts += [self._card(s) for layer in layers for s in layer if s.item is not None]
        return (
            f'<svg id=drawing viewBox="{left:.0f} -10 {right - left:.0f} {height}" width="{right - left:.0f}" '
            f'height="{height}" role="img" aria-label="the graph"><defs><marker id=tip viewBox="0 0 8 8" refX=7 refY=4 '
            f'markerWidth=7 markerHeight=7 orient=auto><path d="M0 0L8 4L0 8z"/></marker></defs>{"".join(parts)}</svg>'
        )

    def _layers(self) -> tuple[list[list[Spot]], list[list[Spot]]]:
        """Spots by layer, and for each drawn edge the spots on its way."""
        spots: dict[Any, Spot] = {v: Spot(v, 0) for v in self.graph.inputs}
        made: dict[Value, Spot] = {v: spots[v] for v in self.graph.inputs}
        for node in self.body:
            spots[node] = Spot(node, 1 + max((made[v].layer for v in node.inputs if v in made), default=0))
            made.update(dict.fromkeys(node.outputs, spots[node]))
        self._sink(spots, made)
        joins: list[tuple[Spot, Spot]] = []
        for node in self.body:
            spot, read = spots[node], [v for v in dict.fromkeys(node.inputs) if v in made]
            self.far[node] = [v for v in read if spot.layer - made[v].layer > LONGEST]
            joins += [(made[v], spot) for v in read if v not in self.far[node]]
        results = [v for v in dict.fromkeys(self.graph.outputs) if v in made]
        if results:
            spots["results"] = last = Spot("results", 1 + max(s.layer for s in spots.values()))
            joins += [(made[v], last) for v in results if last.layer - made[v].layer <= LONGEST]
        layers: list[list[Spot]] = [[] for _ in range(1 + max((s.layer for s in spots.values()), default=0))]
        for spot in spots.values():
            layers[spot.layer].append(spot)
        return layers, [_route(a, b, layers) for a, b in dict.fromkeys(joins)]

    def _sink(self, spots: dict[Any, Spot], made: dict[Value, Spot]) -> None:
        """What depends on no input (a weight's transpose) goes right above its first reader."""
        readers = self.graph.consumers()
        for node in reversed(self.body):
            below = [spots[r].layer for v in node.outputs for r in readers.get(v, []) if r in spots]
            if below and not any(v in made for v in node.inputs):
                spots[node].layer = max(min(below) - 1, 1)

    def _card(self, spot: Spot) -> str:
        x, y = spot.x - WIDE / 2, spot.layer * (HIGH + DOWN)
        if not isinstance(spot.item, Node):
            return self._terminal(spot, x, y)
        node = spot.item
        spent = self.times.get(node)
        inside = f"<rect class=card width={WIDE} height={HIGH} rx=7 />"
        inside += f'<rect class="strip f-{_family(node)}" width=6 height={HIGH} rx=3 />'
        if spent is not None:
            inside += f'<rect class=share width="{max((WIDE - 6) * spent.share, 1):.1f}" x=6 y={HIGH - 4} height=4 />'
            inside += f"<text class=time x={WIDE - 10} y=19>{_duration(spent.nanoseconds)}</text>"
        settings = ", ".join(f"{k}={v}" for k, v in notable(node).items() if _is_small(k, v))
        detail = "  ".join(filter(None, (self._kernel(node), settings)))
        inside += f"<text class=op x=16 y=20>{_escape(_cut(_title(node), 21 if spent else 28))}</text>"
        inside += f"<text class=shape x=16 y=37>{_escape(_cut(_shapes(node), 34))}</text>"
        inside += f"<text class=detail x=16 y=53>{_escape(_cut(detail, 36))}</text>"
        source = node.source().partition("  ")
        inside += f"<text class=line x=16 y=68>{_escape(_cut(f'{source[0]}  {source[2]}', 38))}</text>"
        if self.far.get(node):
            names = "\N{LEFTWARDS ARROW} " + ", ".join(v.name for v in self.far[node])
            inside += f"<text class=far x={WIDE / 2} y=-6>{_escape(_cut(names, 44))}</text>"
        number = self.number[node]
        return f'<g class="node" id="n{number}" data-n="{number}" transform="translate({x:.1f} {y})">{inside}</g>'

    def _terminal(self, spot: Spot, x: float, y: float) -> str:
        value = spot.item
        name, spec = "returned", ", ".join(v.spec for v in self.graph.outputs)
        if isinstance(value, Value):
            name, spec = value.name, value.spec
        return (
            f'<g class=terminal transform="translate({x:.1f} {y + 14})"><rect width={WIDE} height={HIGH - 28} rx=24 />'
            f"<text class=op x={WIDE / 2} y=22>{_escape(_cut(name, 26))}</text>"
            f"<text class=shape x={WIDE / 2} y=39>{_escape(_cut(spec, 36))}</text></g>"
        )

    # -- beside it ---------------------------------------------------------------------------------------------------
    def _details(self) -> list[dict[str, Any]]:
        """What the script shows for a selected node."""
        readers = self.graph.consumers()
        found = []
        for node in self.body:
            above = {self.number[v.node] for v in node.inputs if v.node in self.number}
            below = {self.number[r] for v in node.outputs for r in readers.get(v, []) if r in self.number}
            facts = [
                ("call", f"{node!r}"),
                ("inputs", "\n".join(f"{v.name}  {v.spec}" for v in node.inputs)),
                ("outputs", "\n".join(f"{v.name}  {v.spec}  {_bytes(v.nbytes)}" for v in node.outputs)),
                ("changes", ", ".join(v.name for v in node.writes)),
                ("kernel", self._kernel(node)),
                ("operations", _count(node.flops, "FLOP") if node.flops else ""),
                ("bytes moved", _bytes(node.bytes_moved)),
                ("time", self._speed(node)),
                ("line", node.source()),
            ]
            found.append({"facts": [f for f in facts if f[1]], "above": sorted(above), "below": sorted(below)})
        return found

    def _kernel(self, node: Node) -> str:
        """Which kernel a node gets, where that is known."""
        return "" if self.executable is None else kernel_of(node, self.steps.get(node))

    def _speed(self, node: Node) -> str:
        spent = self.times.get(node)
        if spent is None:
            return ""
        rate, width = node.flops / max(spent.nanoseconds, 1.0), node.bytes_moved / max(spent.nanoseconds, 1.0)
        return f"{_duration(spent.nanoseconds)}, {spent.share:.1%}, {rate:.1f} GFLOP/s, {width:.1f} GB/s"

    def _selection(self) -> str:
        return "<div id=selection><p class=hint>Click a card or a row to see all of it. Escape lets go.</p></div>"

    def _table(self) -> str:
        """Nodes by time, or by operations where nothing was measured."""
        flops = sum(n.flops for n in self.body) or 1
        rows = []
        for node in self.body:
            spent = self.times.get(node)
            share = spent.share if spent else 0.0 if self.times else node.flops / flops
            first = (_duration(spent.nanoseconds) if spent else "") if self.times else _count(node.flops, "")
            rate = f"{node.flops / max(spent.nanoseconds, 1.0):.0f}" if spent and node.flops else ""
            rows.append((share, self._row(node, first, share, rate)))
        for what, t in self.extra if self.total else []:
            cells = f"<td>{_escape(what)}</td><td>{_duration(t)}</td><td>{_meter(t / self.total)}</td><td></td>"
            rows.append((t / self.total, f"<tr>{cells}</tr>"))
        rows.sort(key=lambda row: -row[0])
        what = "time" if self.times else "operations"
        head = f"<tr><th>op</th><th>{what}</th><th>share</th><th>{'GFLOP/s' if self.times else ''}</th></tr>"
        table = f"<table>{head}{''.join(row for _, row in rows)}</table>"
        return f"<h2>By {what}</h2>{self._families()}<div class=scroll>{table}</div>"

    def _row(self, node: Node, first: str, share: float, rate: str) -> str:
        shapes = _cut(_shapes(node).replace("float32  ", ""), 30)
        label = f'<i class="dot f-{_family(node)}"></i>{_escape(_cut(_title(node), 22))}<small>{_escape(shapes)}</small>'
        cells = f"<td>{label}</td><td>{first}</td><td>{_meter(share)}</td><td>{rate}</td>"
        return f'<tr data-n="{self.number[node]}">{cells}</tr>'

    def _families(self) -> str:
        """One bar: which family of ops takes which share."""
        weight: Counter[str] = Counter()
        for node in self.body:
            spent = self.times.get(node, Time(0.0, 0.0)).nanoseconds if self.times else node.flops
            weight[_family(node)] += round(spent)
        total = sum(weight.values())
        if not total:
            return ""
        parts = []
        for family, w in weight.most_common():
            share, label = w / total, family if w > 0.1 * total else ""
            parts.append(f'<i class="f-{family}" style="width:{100 * share:.2f}%" title="{family} {share:.1%}">{label}</i>')
        return f"<div class=stack>{''.join(parts)}</div>"

    def _memory(self) -> str:
        if self.executable is None or not self.executable.arena_bytes:
            return ""
        return f"<h2>Memory plan</h2>{_plan_picture(self.executable)}"

    def _aside(self) -> str:
        parts = []
        if self.ahead:
            parts.append(_folded(f"Computed ahead, when weights change ({len(self.ahead)} ops)", map(repr, self.ahead)))
        if self.graph.states:
            states = (f"{v.name}  {v.spec}" for v in self.graph.states)
            parts.append(_folded(f"Weights and state ({len(self.graph.states)})", states))
        if self.graph.notes:
            parts.append(_folded("Passes", self.graph.notes))
        parts.append(_folded("As text", [str(self.graph)]))
        return "".join(parts)


# -- layout --------------------------------------------------------------------------------------------------------------


def _split(graph: Graph) -> tuple[list[Node], list[Node]]:
    """(nodes that depend on constants and unwritten states only, the others), as they are computed."""
    written = graph.written()
    known = {*graph.constants, *(v for v in graph.states if v not in written)}
    ahead, body = [], []
    for node in graph.nodes:
        if not node.op.writes and node.inputs and all(v in known for v in node.inputs):
            known.update(node.outputs)
            ahead.append(node)
        else:
            body.append(node)
    return ahead, body


def _route(first: Spot, last: Spot, layers: list[list[Spot]]) -> list[Spot]:
    """The spots that an edge goes through: one in each layer between."""
    points = [first]
    for layer in range(first.layer + 1, last.layer):
        points.append(Spot(None, layer))
        layers[layer].append(points[-1])
    points.append(last)
    for a, b in itertools.pairwise(points):
        a.below.append(b)
        b.above.append(a)
    return points


def _order(layers: list[list[Spot]], sweeps: int = 8) -> None:
    """Order each layer by the mean place of its neighbours, above and below in turn, and give every spot its x."""
    for layer in layers:
        _spread(layer)
    for sweep in range(sweeps):
        downwards = sweep % 2 == 0
        for layer in layers if downwards else reversed(layers):
            for spot in layer:
                near = spot.above if downwards else spot.below
                if near:
                    spot.x = sum(n.x for n in near) / len(near)
            layer.sort(key=lambda s: s.x)
            _spread(layer)


def _spread(layer: list[Spot]) -> None:
    """Move spots apart where they overlap, the layer's mean staying where it is."""
    if not layer:
        return
    wanted = sum(s.x for s in layer) / len(layer)
    for a, b in itertools.pairwise(layer):
        b.x = max(b.x, a.x + (a.width + b.width) / 2 + ACROSS)
    shift = wanted - sum(s.x for s in layer) / len(layer)
    for spot in layer:
        spot.x += shift


def _edge(points: list[Spot]) -> str:
    """A smooth line from the foot of a card through the passed layers to the head of another."""
    step = HIGH + DOWN
    x, y = points[0].x, points[0].layer * step + (HIGH if isinstance(points[0].item, Node) else HIGH - 14)
    path = f"M{x:.1f} {y}"
    for spot in points[1:]:
        top = spot.layer * step + (14 if not isinstance(spot.item, Node) and spot.item is not None else 0)
        bend = (top - y) * 0.5
        path += f"C{x:.1f} {y + bend:.1f} {spot.x:.1f} {top - bend:.1f} {spot.x:.1f} {top}"
        if spot.item is None:
            path += f"V{top + HIGH}"
        x, y = spot.x, top + HIGH
    return f'<path class=edge d="{path}" marker-end="url(#tip)"/>'


# -- small pieces ----------------------------------------------------------------------------------------------------------


def _family(node: Node) -> str:
    """The file of the op table that an op comes from."""
    name = getattr(node.op.infer, "__module__", "").rpartition(".")[2]
    return "elementwise" if name == "chain" else name if name in _FAMILIES else "other"


def _title(node: Node) -> str:
    if "program" in node.attrs:
        return " + ".join(name for name, *_ in node.attrs["program"])
    activation = node.attrs.get("activation")
    return f"{node.op.name} + {activation}" if activation else node.op.name


def _shapes(node: Node) -> str:
    values = node.outputs or node.writes
    first = f"{'x'.join(map(str, values[0].shape)) or 'scalar'} {values[0].dtype}" if values else ""
    return f"{first}  {_bytes(values[0].nbytes)}" + (f"  +{len(values) - 1}" if len(values) > 1 else "") if values else ""


def _is_small(key: str, value: Any) -> bool:
    return value is not None and key not in ("program", "activation") and len(str(value)) < 24


def _plan_picture(executable: Any) -> str:
    """Every buffer as a rectangle: steps from left to right, the arena's bytes from bottom to top."""
    width, height, steps, arena = 400, 240, max(len(executable.steps), 1), executable.arena_bytes
    rects, drawn = [], set()

    def rect(kind: str, buffer: Any, label: str) -> None:
        last = min(buffer.last, steps - 1)
        x, w = width * buffer.first / steps, width * (last - buffer.first + 1) / steps
        y, h = height * (1 - (buffer.offset + buffer.room) / arena), height * buffer.room / arena
        title = f"{label}: {_bytes(buffer.nbytes)} at {buffer.offset}, steps {buffer.first} to {last}"
        rects.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(w - 0.6, 0.8):.1f}" height="{max(h - 0.6, 0.8):.1f}">'
            f"<title>{_escape(title)}</title></rect>"
        )

    for value, buffer in executable.buffers.items():
        if id(buffer) not in drawn:  # one that an op has taken over is drawn once
            drawn.add(id(buffer))
            made = value.node is not None and hasattr(value.node.op, "infer")
            rect(f"f-{_family(value.node) if made else 'other'}", buffer, value.name)
    for step in executable.steps:
        if step.workspace is not None:
            rect("scratch", step.workspace, f"scratch of {step.node.op.name}")
    level = height * (1 - executable.bound / arena)
    return (
        f'<svg class=plan viewBox="0 0 {width} {height + 18}">{"".join(rects)}<path class=bound d="M0 {level:.1f}H{width}"/>'
        f'<text x=4 y="{max(level + 12, 12):.1f}">lower bound {_bytes(executable.bound)}</text>'
        f"<text x=0 y={height + 14}>step 0</text><text x={width} y={height + 14} text-anchor=end>step {steps - 1}</text></svg>"
    )


def _folded(title: str, lines: Iterable[str]) -> str:
    return f"<details><summary>{_escape(title)}</summary><pre>{_escape(chr(10).join(lines))}</pre></details>"


def _meter(share: float) -> str:
    return f'<span class=meter><i style="width:{100 * share:.1f}%"></i></span>{share:.1%}'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value).replace("<", "\\u003c")


def _count(number: float, unit: str) -> str:
    if number < 1000:
        return f"{number:.0f} {unit}".strip()
    power = min(int(math.log10(number)) // 3, 4)
    return f"{number / 1000**power:.2f} {' kMGT'[power]}{unit}"


def _bytes(number: float) -> str:
    return _count(number, "B")


def _duration(nanoseconds: float) -> str:
    if nanoseconds < 1e6:
        return f"{nanoseconds / 1e3:.1f} \N{MICRO SIGN}s"
    return f"{nanoseconds / 1e6:.2f} ms"


__all__ = ["page"]
