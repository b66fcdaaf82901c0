"""Where the time of a graph goes: a line for each kernel, with its rate and bandwidth.

`GRAFTWORK_DEBUG=2`, read when a function is compiled, prints these lines to the standard error at every replay.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .graph import Node
from .graph_text import statement

if TYPE_CHECKING:
    from .lower import Executable


class Row(NamedTuple):
    """One kernel of a replay: its node, the plan's variant, the time in nanoseconds and its share of all kernels' time."""

    node: Node
    variant: str
    nanoseconds: float
    share: float

    @property
    def output(self) -> str:
        return _output(self.node)

    @property
    def gflops(self) -> float:
        """10^9 operations a second. Winograd's convolution needs fewer than are counted."""
        return self.node.flops / max(self.nanoseconds, 1.0)

    @property
    def gbytes(self) -> float:
        """10^9 bytes a second, of those that the op must move at least."""
        return self.node.bytes_moved / max(self.nanoseconds, 1.0)

    def ideal(self, flops: float, bandwidth: float) -> float:
        """Nanoseconds at the roofline: operations at the peak rate, or bytes at the peak bandwidth if those take more."""
        return 1e9 * max(self.node.flops / flops, self.node.bytes_moved / bandwidth)

    def line(self) -> str:
        return (
            f"{self.node.op.name:<16} {self.variant:<16} {self.output:<28} {self.nanoseconds / 1e3:9.1f} us "
            f"{self.gflops:7.1f} GFLOP/s {self.gbytes:6.1f} GB/s {self.share:6.1%}  {self.node.source()}"
        )


def profile(executable: Executable, inputs: Sequence[np.ndarray], repeat: int = 20) -> list[Row]:
    """The median time of each kernel over `repeat` replays, after two that do not count; in the order in which they run."""
    runs: list[dict[Node, int]] = []
    for _ in range(repeat + 2):
        runs.append({})
        executable.run(inputs, runs[-1])
    return rows(executable, {node: statistics.median(r[node] for r in runs[2:]) for node in runs[-1]})


def rows(executable: Executable, times: Mapping[Node, float]) -> list[Row]:
    """Times of one replay, or medians of several, as rows."""
    variants = {s.node: kernel_of(s.node, s) for s in executable.steps}
    total = sum(times.values()) or 1.0
    return [Row(node, variants.get(node, ""), t, t / total) for node, t in times.items()]


def describe(executable: Executable) -> dict[str, Any]:
    """What a replay computes and the memory it needs, as plain data. Bytes; `kernel` is the plan's variant."""
    graph = executable.graph
    ahead = set(executable.ahead_nodes)
    kernels = {n: s for s in executable.steps for n in _nodes_of(s.node)}
    return {
        "name": graph.name,
        "inputs": [{"name": v.name, "shape": list(v.shape), "dtype": str(v.dtype)} for v in graph.inputs],
        "outputs": [{"name": v.name, "shape": list(v.shape), "dtype": str(v.dtype)} for v in graph.outputs],
        "nodes": [
            {
                "op": n.op.name, "text": statement(n), "inputs": [v.name for v in n.inputs],
                "outputs": [v.name for v in n.outputs], "output": _output(n), "kernel": kernel_of(n, kernels.get(n)),
                "flops": n.flops, "bytes": n.bytes_moved,
                "line": n.source(),
            }
            for n in graph.nodes
            if n not in ahead
        ],
        "ahead_ops": len(ahead),
        "states": len(graph.states),
        "memory": {
            "arena": executable.arena_bytes, "lower_bound": executable.bound, "ahead": executable.ahead_bytes,
            "arena_over_bound": executable.arena_bytes / max(executable.bound, 1),
            "state": sum(v.nbytes for v in graph.states), "inputs": sum(v.nbytes for v in graph.inputs),
            "outputs": sum(v.nbytes for v in graph.outputs),
        },
        "passes": list(graph.notes),
    }  # fmt: skip


def summary(found: Sequence[Row]) -> dict[str, Any]:
    """Rows as plain data, in the order in which they run; their sum; and the roofline, whose peaks are measured here."""
    from ..kernels.cpu.peak import bandwidth, peak_flops

    flops, width = peak_flops(), bandwidth()
    total, ideal = sum(r.nanoseconds for r in found), sum(r.ideal(flops, width) for r in found)
    kernels = [
        {
            "op": r.node.op.name, "kernel": r.variant, "output": r.output, "us": r.nanoseconds / 1e3, "gflops": r.gflops,
            "gbytes": r.gbytes, "share": r.share, "roofline": r.ideal(flops, width) / max(r.nanoseconds, 1.0),
            "line": r.node.source(),
        }
        for r in found
    ]  # fmt: skip
    work = sum(r.node.flops for r in found)
    return {
        "kernels": kernels, "us": total / 1e3, "gflop": work / 1e9, "gflops": work / max(total, 1.0), "ideal_us": ideal / 1e3,
        "roofline": ideal / max(total, 1.0), "peak": {"gflops": flops / 1e9, "gbytes": width / 1e9},
    }  # fmt: skip


def kernel_of(node: Node, step: Any) -> str:
    """Which kernel a node gets, in words. step: the executable's for it, if it has one."""
    if step is not None:
        return step.variant if step.plan is None else step.plan.variant or "planned"
    if node.op.view is not None:
        return "a view"
    return "its parts write into it" if node.op.name == "concat" else ""


def _nodes_of(node: Node) -> list[Node]:
    """A step's node, and the graph's node that it computes, if its inputs had to be exchanged."""
    return [node, *(v.node for v in node.outputs if v.node is not None)]


def _output(node: Node) -> str:
    return ", ".join(v.spec for v in node.outputs) or ", ".join(f"{v.spec} in place" for v in node.writes)


def report_runs(executable: Executable) -> None:
    """Let this executable print a line for each kernel at every run."""
    run = executable.run

    def reported(inputs: Sequence[np.ndarray], times: dict[Node, int] | None = None) -> Any:
        own: dict[Node, int] = {}
        results = run(inputs, own)
        lines = [row.line() for row in rows(executable, own)]
        head = f"{executable.graph.name}: {sum(own.values()) / 1e3:.1f} us in {len(own)} kernels"
        print(head, *lines, sep="\n  ", file=sys.stderr)
        if times is not None:
            times.update({node: times.get(node, 0) + t for node, t in own.items()})
        return results

    executable.run = reported  # type: ignore[method-assign]


__all__ = ["Row", "profile", "report_runs", "rows"]
