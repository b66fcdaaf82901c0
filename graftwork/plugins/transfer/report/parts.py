"""Parts of a page as HTML and SVG. All text is escaped; a picture has a text in its place for those who cannot see it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np


def table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """An HTML table; the first cell of a row is its heading."""
    head = "".join(f"<th scope=col>{html.escape(h)}</th>" for h in header)
    body = "".join(_row(row) for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(row: Sequence[object]) -> str:
    first, *others = (html.escape(str(c)) for c in row)
    return f"<tr><th scope=row>{first}</th>" + "".join(f"<td>{c}</td>" for c in others) + "</tr>"


def cards(entries: Sequence[tuple[str, str, str]]) -> str:
    """Figures to see first: (name, value, note)."""
    inner = "".join(
        f'<div><dt>{html.escape(n)}</dt><dd>{html.escape(v)}<span class="note">{html.escape(note)}</span></dd></div>'
        for n, v, note in entries
    )
    return f'<dl class="cards">{inner}</dl>'


def bar_chart(values: dict[str, tuple[float, float]]) -> str:
    """Horizontal bars from 0 to 1 with a whisker of one deviation; (mean, deviation) by name."""
    return interval_chart({n: (m, m - d, m + d) for n, (m, d) in values.items()})


def interval_chart(values: dict[str, tuple[float, float, float]]) -> str:
    """Horizontal bars from 0 to 1 with a whisker; (value, low, high) by name."""
    bars = []
    for i, (name, (mean, *ends)) in enumerate(values.items()):
        y, right = 34 * i, 290 + 430 * mean
        low, high = (290 + 430 * min(max(e, 0), 1) for e in ends)
        bars.append(
            f'<text x="280" y="{y + 20}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect x="290" y="{y + 5}" width="{right - 290:.1f}" height="22" rx="3" fill="var(--leaf)"/>'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 16}" y2="{y + 16}" stroke="var(--ink)" stroke-width="2"/>'
            f'<text x="{max(right, high) + 8:.1f}" y="{y + 21}">{mean:.3f}</text>'
        )
    label = html.escape("; ".join(f"{n}: {v[0]:.3f}" for n, v in values.items()))
    return f'<svg viewBox="0 0 800 {34 * len(values) + 8}" role="img" aria-label="{label}">{"".join(bars)}</svg>'


COLOURS = ("var(--leaf)", "var(--wrong)", "#4878b8", "#b8862b", "#8b62ad")
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
DASHES = ("", "7 4", "2 4", "9 3 2 3", "4 2")


def line_chart(lines: Mapping[str, Sequence[tuple[float, float]]], x_name: str, y_name: str, logarithmic: bool = False,
               diagonal: bool = False) -> str:  # fmt: skip
    """Curves of (x, y) points by name; told apart by dashes as well as colours. diagonal: a line from corner to corner."""
    points = np.array([p for line in lines.values() for p in line], float)
    xs = np.log10(points[:, 0]) if logarithmic else points[:, 0]
    x0, x1, y0, y1 = xs.min(), xs.max(), min(points[:, 1].min(), 1.0), points[:, 1].max()
    if diagonal:
        x0, x1, y0, y1 = 0.0, 1.0, 0.0, 1.0
    x1, y1 = max(x1, x0 + 1e-9), max(y1, y0 + 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        return 70 + 600 * (x - x0) / (x1 - x0), 250 - 220 * (y - y0) / (y1 - y0)

    marks = "".join(
        f'<line class="axis" x1="70" x2="670" y1="{place(x0, v)[1]:.1f}" y2="{place(x0, v)[1]:.1f}"/>'
        f'<text class="soft" x="62" y="{place(x0, v)[1] + 5:.1f}" text-anchor="end">{v:.2f}</text>'
        for v in np.linspace(y0, y1, 5)
    )
    where = {v: place(np.log10(v) if logarithmic else v, y0)[0] for v in (QUARTERS if diagonal else np.unique(points[:, 0]))}
    for value, at in _apart(where).items():
        marks += f'<text class="soft" x="{at:.1f}" y="272" text-anchor="middle">{value:.3g}</text>'
    if diagonal:
        marks += '<line x1="70" y1="250" x2="670" y2="30" class="axis" stroke-dasharray="4 4"/>'
    drawn = "".join(
        _curve(name, [place(np.log10(x) if logarithmic else x, y) for x, y in line], i)
        for i, (name, line) in enumerate(lines.items())
    )
    label = html.escape(f"{y_name} against {x_name}. " + "; ".join(
        f"{n}: " + ", ".join(f"{y:.3f} at {x:.4g}" for x, y in line) for n, line in lines.items()))  # fmt: skip
    return (f'<svg viewBox="0 0 800 300" role="img" aria-label="{label}">{marks}{drawn}'
            f'<text class="soft" x="370" y="294" text-anchor="middle">{html.escape(x_name)}</text>'
            f'<text class="soft" x="70" y="18">{html.escape(y_name)}</text></svg>')  # fmt: skip


def _apart(where: Mapping[float, float], least: float = 48) -> dict[float, float]:
    """Those values whose numbers, written at these places, do not run into each other."""
    chosen: dict[float, float] = {}
    for value, at in where.items():
        if not chosen or at - max(chosen.values()) >= least:
            chosen[value] = at
    return chosen


def _curve(name: str, points: Sequence[tuple[float, float]], number: int) -> str:
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points)
    return (f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"/>{dots}'
            f'<text x="{points[-1][0] + 10:.1f}" y="{points[-1][1] + 5:.1f}">{html.escape(name)}</text>')  # fmt: skip


def confusion_table(matrix: np.ndarray, classes: Sequence[str]) -> str:
    """Counts (true class, predicted class) as a table whose cells are the darker the larger their share of the row."""
    head = "<td></td>" + "".join(f"<th scope=col>{html.escape(c)}</th>" for c in classes)
    rows = []
    for i, name in enumerate(classes):
        total = max(int(matrix[i].sum()), 1)
        cells = "".join(_cell(int(n), n / total, i == j) for j, n in enumerate(matrix[i]))
        rows.append(f"<tr><th scope=row>{html.escape(name)}</th>{cells}</tr>")
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="confusion">'
            "<caption>Rows: "
            f"what it is. Columns: what was predicted.</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div>")  # fmt: skip


def _cell(count: int, share: float, hit: bool) -> str:
    """At most 50 % of colour behind the number, so that its contrast stays."""
    if not count:
        return '<td class="zero">0</td>' if hit else '<td class="zero" aria-label="0">·</td>'
    colour = "var(--leaf)" if hit else "var(--wrong)"
    return f'<td style="background:color-mix(in srgb,{colour} {8 + 42 * share:.0f}%,transparent)">{count}</td>'


def picture_grid(
    rows: Sequence[Sequence[np.ndarray]], captions: Sequence[Sequence[object]], size: str = "", names: Sequence[str] = ()
) -> str:
    """Rows of pictures (uint8 arrays) with a caption each. size: "", "middle" or "large". names: of the rows."""
    strips = []
    for i, (pictures, texts) in enumerate(zip(rows, captions, strict=True)):
        figures = "".join(figure(p, str(t), html.escape(str(t))) for p, t in zip(pictures, texts, strict=True))
        name = f'<div class="name">{html.escape(names[i])}</div>' if names else ""
        strips.append(f'<div class="strip {size}{" labelled" if names else ""}">{name}{figures}</div>')
    return "".join(strips)


def figure(pixels: np.ndarray, alt: str, caption: str) -> str:
    """A picture with a caption of HTML."""
    return f'<figure><img src="{data_uri(pixels)}" alt="{html.escape(alt)}"><figcaption>{caption}</figcaption></figure>'


def feature_map(places: np.ndarray, thumbnails: Sequence[np.ndarray], names: Sequence[str]) -> str:
    """Pictures at their places (n, 2) in a plane."""
    low, high = places.min(axis=0), places.max(axis=0)
    unit = (places - low) / np.maximum(high - low, 1e-12)
    inner = "".join(
        f'<image href="{data_uri(p)}" x="{10 + 744 * x:.1f}" y="{10 + 544 * y:.1f}" width="36" height="36" '
        f'preserveAspectRatio="xMidYMid slice"><title>{html.escape(n)}</title></image>'
        for (x, y), p, n in zip(unit, thumbnails, names, strict=True)
    )
    counts = {n: list(names).count(n) for n in dict.fromkeys(names)}
    label = html.escape("A map of pictures by their features: " + ", ".join(f"{c} of {n}" for n, c in counts.items()))
    return f'<svg class="map" viewBox="0 0 800 600" role="img" aria-label="{label}">{inner}</svg>'


def data_uri(pixels: np.ndarray) -> str:
    """A uint8 picture inside the page: PNG where it is small or grey, otherwise JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    kind = "JPEG" if pixels.shape[-1] == 3 and pixels.size > 3000 else "PNG"
    Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels).save(
        buffer, kind, **({"quality": 85} if kind == "JPEG" else {})
    )
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
