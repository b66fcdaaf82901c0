"""The page about a compression, in the style of the transfer plugin's."""

from __future__ import annotations

from pathlib import Path

from ..transfer.report.page import Section, write_page
from ..transfer.report.parts import cards, interval_chart, line_chart, table
from .commands import FORMS, rows, verdict
from .pipeline import Compression, Step


def write(path: str | Path, found: Compression, name: str) -> None:
    """Write the page; it appears whole or not at all."""
    before, stored = found.forms["before"], found.forms["stored"]
    lead = (f"{name}: {before['bytes'] / stored['bytes']:.1f} times smaller, {stored['points_lost']:.2f} points of accuracy "
            f"lost on {found.pictures:,} pictures of {found.classes} classes.")  # fmt: skip
    sections = [_figures(found), _table(found), _tried(found), _layers(found)]
    write_page(path, f"Compression of {name}", lead, sections)


def _figures(found: Compression) -> Section:
    before, stored = found.forms["before"], found.forms["stored"]
    entries = [
        ("file", f"{stored['bytes'] / 1e6:.2f} MB", f"{stored['bytes'] / before['bytes']:.1%} of before"),
        ("accuracy", f"{stored['accuracy']:.1%}", "95 %: {:.1%} to {:.1%}".format(*stored["interval"])),
        ("before", f"{before['accuracy']:.1%}", "95 %: {:.1%} to {:.1%}".format(*before["interval"])),
        ("weights", str(found.step), ""),
    ]  # fmt: skip
    if "graph" in found.forms:
        ratio = found.forms["graph"]["latency_ms"]["1"] / before["latency_ms"]["1"]
        entries.append(("8-bit graph", f"{ratio:.2f}", "of the time at batch 1"))
    return Section("In figures", "; ".join(verdict(found)) + ".", cards(entries))


def _table(found: Compression) -> Section:
    text = "Times are medians on this machine. The pictures that chose the step are those that measured it."
    spans = {FORMS[name]: (f["accuracy"], *f["interval"]) for name, f in found.forms.items()}
    body = table(["", *(FORMS[name] for name in found.forms)], [[title, *cells] for title, cells in rows(found)])
    return Section("Before and after", text, body + interval_chart(spans))


def _tried(found: Compression) -> Section:
    ordered = sorted(found.tried, key=lambda row: (row["sparsity"], -(row["values"] or 256)))
    cells = [
        [str(Step(r["sparsity"], r["values"])), "yes" if r["refitted"] else "no", f"{r['accuracy']:.4f}",
         f"{r['points_lost']:.2f}"]
        for r in ordered
    ]  # fmt: skip
    text = ("From mild to strong. The strongest that keeps the budget is searched by bisection; from there on, steps are tried "
            "with a classifier that was fitted anew.")  # fmt: skip
    return Section("Steps that were tried", text, table(["step", "fitted anew", "accuracy", "points lost"], cells))


def _layers(found: Compression) -> Section:
    cells = [
        [r["weight"], f"{r['values']:,}", f"{r['zeros']:.0%}", f"{r['different']:,}", f"{r['weight_error']:.3f}",
         "-" if r["output_error"] is None else f"{r['output_error']:.3f}"]
        for r in found.layers
    ]  # fmt: skip
    curves = {"weights": [(i, r["weight_error"]) for i, r in enumerate(found.layers, 1)]}
    outputs = [(i, r["output_error"]) for i, r in enumerate(found.layers, 1) if r["output_error"] is not None]
    if outputs:
        curves["outputs"] = outputs
    body = line_chart(curves, "layer", "relative error") + table(
        ["weight", "values", "zeros", "different", "error of weights", "error of outputs"], cells
    )
    return Section("Layer by layer", "Errors are Euclidean, relative to what was there before; outputs include what earlier "
                   "layers add.", body)  # fmt: skip
