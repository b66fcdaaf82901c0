"""The memory plan: one arena, in which buffers that are never needed at the same time share bytes."""

from __future__ import annotations

from collections.abc import Sequence

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


class Buffer:
    """`nbytes` of the arena, needed from step `first` to step `last`; `arrange` sets `offset`."""

    __slots__ = ("first", "last", "nbytes", "offset")

    def __init__(self, nbytes: int, first: int = 0, last: int = 0):
        self.nbytes, self.first, self.last, self.offset = nbytes, first, last, 0

    @property
    def room(self) -> int:
        """Bytes taken in the arena."""
        return -(-self.nbytes // ALIGNMENT) * ALIGNMENT

    def meets(self, other: Buffer) -> bool:
        """Whether both are needed at some step."""
        return self.first <= other.last and other.first <= self.last


def arrange(buffers: Sequence[Buffer]) -> int:
    """Give every buffer an offset; returns the arena's size in bytes.

    The better of two greedy orders: largest first (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
    Inference", 2020), and in order of time. Each buffer goes to the lowest gap that is free during its life.
    """
    distinct = list(dict.fromkeys(buffers))
    best, offsets = None, []
    for key in (lambda b: (-b.nbytes, b.first), lambda b: (b.first, -b.nbytes)):
        total = _arrange_in_order(sorted(distinct, key=key))
        if best is None or total < best:
            best, offsets = total, [b.offset for b in distinct]
    for buffer, offset in zip(distinct, offsets, strict=True):
        buffer.offset = offset
    return best or 0


def _arrange_in_order(buffers: Sequence[Buffer]) -> int:
    placed: list[Buffer] = []
    for buffer in buffers:
        offset = 0
        for other in sorted((b for b in placed if b.meets(buffer)), key=lambda b: b.offset):
            if other.offset - offset >= buffer.room:
                break
            offset = max(offset, other.offset + other.room)
        buffer.offset = offset
        placed.append(buffer)
    return max((b.offset + b.room for b in buffers), default=0)


def lower_bound(tensors: Sequence[Buffer], workspaces: Sequence[Buffer | None]) -> tuple[int, int]:
    """(bytes of the largest set of tensors alive at once, the same with each step's workspace): no arena can be smaller."""
    alive = [0] * len(workspaces)
    for buffer in dict.fromkeys(tensors):
        for step in range(buffer.first, min(buffer.last + 1, len(alive))):
            alive[step] += buffer.room
    total = [a + (w.room if w else 0) for a, w in zip(alive, workspaces, strict=True)]
    return max(alive, default=0), max(total, default=0)
