"""The sizes of the processor's data caches, which the kernels' blocks are cut to."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

_WHERE = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Caches(NamedTuple):
    """Bytes of a core's first and second level and of the last level that cores share."""

    first: int = 32 << 10
    second: int = 512 << 10
    last: int = 8 << 20


@cache
def sizes(where: Path = _WHERE) -> Caches:
    """As Linux reports them; where it reports none, what common processors have at least."""
    found: dict[int, int] = {}
    for index in sorted(where.glob("index*")):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
            if kind != "Instruction":
                found[int(level)] = int(size.rstrip("KMG")) * _UNITS.get(size[-1], 1)
        except (OSError, ValueError):
            continue  # an entry that cannot be read or understood: its level keeps the default
    default = Caches()
    second = found.get(2, default.second)
    return Caches(found.get(1, default.first), second, found.get(3, max(second, default.last)))
