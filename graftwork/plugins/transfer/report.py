"""One self-contained HTML page: pictures as data, charts as SVG, no script, nothing fetched."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...nn.files import atomic_path

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --paper: #fbfaf7; --leaf: #2f7d4f; --line: #d9d5cb; --soft: #6b7280 }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e5df; --paper: #191c1b; --leaf: #6cc08b; --line: #3a3f3c; --soft: #9aa39d } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 56rem; margin: 3rem auto;
  padding: 0 1.2rem }
h1 { font-size: 2rem; margin-bottom: .2rem } h2 { margin-top: 3rem; border-bottom: 2px solid var(--leaf); padding-bottom: .2rem }
.lead { color: var(--soft) } table { border-collapse: collapse; width: 100%; margin-top: 1rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line) } th { color: var(--soft); font-weight: 600 }
.strip { display: flex; flex-wrap: wrap; gap: 4px; margin: 6px 0 } figure { margin: 0; text-align: center }
figure img { width: 44px; height: 44px; border-radius: 4px; display: block; object-fit: cover }
figcaption { font-size: .72rem; color: var(--soft) } svg text { fill: var(--ink); font: 14px system-ui, sans-serif }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page: its title, a sentence, and HTML made by the functions here."""

    title: str
    text: str
    body: str


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table; cells are escaped."""
    head = "".join(f"<th scope=col>{html.escape(h)}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def bar_chart(values: dict[str, tuple[float, float]]) -> str:
    """Horizontal bars from 0 to 1 with a whisker of one deviation; (mean, deviation) by name."""
    bars = []
    for i, (name, (mean, deviation)) in enumerate(values.items()):
        y, right = 34 * i, 290 + 430 * mean
        low, high = (290 + 430 * min(max(mean + d, 0), 1) for d in (-deviation, deviation))
        bars.append(
            f'<text x="280" y="{y + 20}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect x="290" y="{y + 5}" width="{right - 290:.1f}" height="22" rx="3" fill="var(--leaf)"/>'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 16}" y2="{y + 16}" stroke="var(--ink)" stroke-width="2"/>'
            f'<text x="{max(right, high) + 8:.1f}" y="{y + 21}">{mean:.3f}</text>'
        )
    label = html.escape("; ".join(f"{n}: {m:.3f}" for n, (m, _) in values.items()))
    return f'<svg viewBox="0 0 800 {34 * len(values) + 8}" role="img" aria-label="{label}">{"".join(bars)}</svg>'


def picture_grid(rows: Sequence[np.ndarray], captions: Sequence[Sequence[object]]) -> str:
    """Rows of small pictures (uint8 arrays) with a caption each."""
    strips = []
    for pictures, texts in zip(rows, captions, strict=True):
        figures = "".join(
            f'<figure><img src="{data_uri(p)}" alt="{html.escape(str(t))}"><figcaption>{html.escape(str(t))}</figcaption></figure>'
            for p, t in zip(pictures, texts, strict=True)
        )
        strips.append(f'<div class="strip">{figures}</div>')
    return "".join(strips)


def data_uri(pixels: np.ndarray) -> str:
    """A picture as PNG inside the page."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page; it appears whole or not at all."""
    body = "".join(f"<h2>{html.escape(s.title)}</h2><p>{html.escape(s.text)}</p>{s.body}" for s in sections)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f'<p class="lead">{html.escape(lead)}</p>{body}</body></html>'
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
