"""What a step consists of: computing, filling buckets, buckets on their way, waiting. As Chrome trace JSON and as a picture."""

from __future__ import annotations

import html
import json
import time
from pathlib import Path
from typing import Any

from ...nn.files import atomic_path

COLOURS = {"compute": "#4878a8", "fill": "#8c6bb1", "bucket": "#e8a33d", "wait": "#c44e52", "statistics": "#55a868"}
LANES = ("rank", "buckets")


class Timeline:
    """Events (name, kind, start, seconds) of the last `keep` steps of this rank; nothing is kept unless `on`."""

    def __init__(self, on: bool = False, keep: int = 20):
        self.on, self.keep = on, keep
        self.steps: list[tuple[float, float, list[tuple[str, str, float, float]]]] = []
        self._events: list[tuple[str, str, float, float]] = []
        self._begun: dict[int, float] = {}
        self._start = time.perf_counter()

    def add(self, name: str, kind: str, start: float, stop: float) -> None:
        if self.on:
            self._events.append((name, kind, start, stop))

    def begin(self, bucket: int) -> None:
        self._begun[bucket] = time.perf_counter()

    def end(self, bucket: int, size: int) -> None:
        self.add(f"bucket {bucket}, {size / 2e6:.2f} MB", "bucket", self._begun.get(bucket, self._start), time.perf_counter())

    def step(self) -> None:
        """A step is over; the next one begins."""
        now = time.perf_counter()
        if self.on:
            self.steps = [*self.steps[-self.keep + 1 :], (self._start, now, self._events)]
        self._events, self._start = [], now

    def events(self) -> list[dict[str, Any]]:
        """All events, computing among them (what no other event of the rank itself covers), times in microseconds."""
        found = []
        for number, (start, stop, events) in enumerate(self.steps):
            busy = sorted((e for e in events if e[1] != "bucket"), key=lambda e: e[2])
            edges = [start, *[t for e in busy for t in e[2:]], stop]
            computing = [("compute", "compute", a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]
            found += [
                {"name": name, "cat": kind, "ph": "X", "ts": a * 1e6, "dur": (b - a) * 1e6, "tid": int(kind == "bucket"),
                 "args": {"step": number}}
                for name, kind, a, b in [*computing, *events]
            ]  # fmt: skip
        return found


def write(path: str | Path, ranks: list[list[dict[str, Any]]], hosts: list[str]) -> None:
    """Chrome's trace format (chrome://tracing, ui.perfetto.dev) at `path`, and a page with the last step beside it.

    Clocks of different machines are brought together at each rank's first event.
    """
    path, events = Path(path), []
    for rank, own in enumerate(ranks):
        first = min((e["ts"] for e in own), default=0.0)
        names = [("process_name", f"rank {rank} on {hosts[rank]}", 0), *(("thread_name", n, i) for i, n in enumerate(LANES))]
        events += [{"name": what, "ph": "M", "pid": rank, "tid": i, "args": {"name": name}} for what, name, i in names]
        events += [{**e, "pid": rank, "ts": e["ts"] - first} for e in own]
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
    with atomic_path(path.with_suffix(".html")) as temporary:
        temporary.write_text(page([e for e in events if e["ph"] == "X"], hosts))


def page(events: list[dict[str, Any]], hosts: list[str]) -> str:
    """An HTML page with an SVG of the last step: two lanes a rank."""
    last = max((e["args"]["step"] for e in events), default=0)
    shown = [e for e in events if e["args"]["step"] == last]
    starts = {r: min((e["ts"] for e in shown if e["pid"] == r), default=0.0) for r in range(len(hosts))}
    length = max((e["ts"] + e["dur"] - starts[e["pid"]] for e in shown), default=1.0)
    width, lane, left = 1100, 22, 110
    bars = []
    for e in sorted(shown, key=lambda e: e["ts"]):
        x = left + (e["ts"] - starts[e["pid"]]) / length * width
        y = 20 + (2 * e["pid"] + e["tid"]) * lane + 10 * e["pid"]
        title = html.escape(f"{e['name']}: {e['dur'] / 1e3:.3f} ms")
        bars.append(f'<rect x="{x:.2f}" y="{y}" width="{max(e["dur"] / length * width, 0.5):.2f}" height="{lane - 3}" '
                    f'fill="{COLOURS[e["cat"]]}"><title>{title}</title></rect>')  # fmt: skip
    for rank, host in enumerate(hosts):
        bars.append(f'<text x="4" y="{34 + 2 * rank * lane + 10 * rank}">rank {rank}, {html.escape(host[:8])}</text>')
    keys = "".join(f'<span style="background:{c}"></span> {k} ' for k, c in COLOURS.items())
    height = 40 + len(hosts) * (2 * lane + 10)
    return (
        '<!doctype html><meta charset="utf-8"><title>One step</title>'
        "<style>body{font:14px sans-serif;margin:2em}svg text{font:12px sans-serif}"
        "span{display:inline-block;width:1em;height:1em;margin-left:1em}</style>"
        f"<h1>One training step: {length / 1e3:.2f} ms</h1><p>Upper lane: what the rank does; lower: buckets on their way. "
        f'{keys}</p><svg width="{left + width + 10}" height="{height}">{"".join(bars)}</svg>'
    )
