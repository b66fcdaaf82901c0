"""The template of a page, and what fills it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from ....nn.files import atomic_path


@dataclass(frozen=True)
class Section:
    """A part of the page: its title, a sentence, and HTML made by the functions of `parts`."""

    title: str
    text: str
    body: str


def write_page(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page; it appears whole or not at all. Titles and texts are escaped."""
    here = files(__package__)
    page = Template(here.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title), lead=html.escape(lead), style=here.joinpath("page.css").read_text(encoding="utf-8"),
        navigation=_navigation(sections), sections="".join(_section(i, s) for i, s in enumerate(sections)),
    )  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _section(number: int, section: Section) -> str:
    return (
        f'<section aria-labelledby="part{number}"><h2 id="part{number}">{html.escape(section.title)}</h2>'
        f"<p>{html.escape(section.text)}</p>{section.body}</section>"
    )


def _navigation(sections: Sequence[Section]) -> str:
    """Links to the sections, of a page that has enough of them."""
    if len(sections) < 4:
        return ""
    items = "".join(f'<li><a href="#part{i}">{html.escape(s.title)}</a></li>' for i, s in enumerate(sections))
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'
