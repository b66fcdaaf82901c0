"""What does not pair between a model and a file or a state, as an aligned listing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]
SHOWN = 40  # rows of a listing; the weights of another network would otherwise fill the screen
KINDS = ("missing", "mismatched", "unexpected")


@dataclass(frozen=True)
class Row:
    """One tensor that does not pair: its kind, its name, and the shapes on both sides (None where there is none)."""

    kind: str
    name: str
    expected: Shape | None = None
    found: Shape | None = None


def listing(rows: Iterable[Row]) -> str:
    """Counts of all kinds on the first line, then the rows, aligned.

    Of more than SHOWN rows every kind shows its share, and says how many more there are: a file of another network has so
    much that is missing that what is unexpected, which tells whose file it is, would never be seen.
    """
    rows = list(rows)
    groups = [group for kind in KINDS if (group := [row for row in rows if row.kind == kind])]
    shown = [group[:share] for group, share in zip(groups, _shares([len(g) for g in groups]), strict=True)]
    table = [[_cells(row) for row in group] for group in shown]
    widths = [max(len(cells[i]) for group in table for cells in group) for i in range(3)] if table else []
    lines = [", ".join(f"{len(group)} {group[0].kind}" for group in groups)]
    for group, part in zip(groups, table, strict=True):
        lines += ["  " + "  ".join([*map(str.ljust, cells, widths), cells[3]]).rstrip() for cells in part]
        if len(group) > len(part):
            lines.append(f"  ... and {len(group) - len(part)} more {group[0].kind}")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, str, str, str]:
    return row.kind, _printable(row.name), _side("expected", row.expected), _side("found", row.found)


def _shares(wanted: Sequence[int]) -> list[int]:
    """How many rows of each group are shown: equal parts of SHOWN, and what a small group does not need goes to the others."""
    places, shares = SHOWN, [0] * len(wanted)
    waiting = sorted(range(len(wanted)), key=lambda i: wanted[i])
    while waiting:
        i = waiting.pop(0)
        shares[i] = min(wanted[i], places // (len(waiting) + 1))
        places -= shares[i]
    return shares


def _side(word: str, shape: Shape | None) -> str:
    return "" if shape is None else f"{word} {shape}"


def _printable(name: str) -> str:
    """A file's names could steer a terminal; show control characters as escapes, and cut what is absurdly long."""
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in name)
    return text if len(text) <= 80 else text[:77] + "..."
