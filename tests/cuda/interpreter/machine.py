"""Memory, warps, blocks and clusters, and the scheduler that lets them take turns."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from .parser import (
    KINDS,
    PARAMETERS,
    SHARED_START,
    Address,
    Immediate,
    Instruction,
    Program,
    PtxError,
    Register,
    Special,
    size_of,
)

LANES = np.arange(32)
RANK_SHIFT = 24  # shared addresses of a cluster hold the block's rank above this bit
WINDOW = 1 << 48  # where generic addresses of shared memory begin
FIRST_ARRAY = 1 << 32


class Memory:
    """Global memory: the arrays of a launch at made-up addresses, with gaps between them."""

    def __init__(self) -> None:
        self.arrays: list[tuple[int, np.ndarray]] = []
        self._next = FIRST_ARRAY

    def place(self, array: np.ndarray) -> int:
        """The address of an array; the same array has one address."""
        for base, known in self.arrays:
            if known.ctypes.data == array.ctypes.data and known.size == array.nbytes:
                return base
        base = self._next
        self.arrays.append((base, array.reshape(-1).view(np.uint8)))
        self._next += -(-(array.nbytes + 4096) // 1024) * 1024
        return base

    def find(self, address: int, size: int, text: str = "") -> tuple[int, np.ndarray]:
        for base, array in self.arrays:
            if base <= address and address + size <= base + array.size:
                return base, array
        raise PtxError(f"global memory access of {size} bytes at {address:#x}, outside of all arrays: {text}")


class Warp:
    def __init__(self, block: Block, number: int):
        self.block, self.number = block, number
        self.live = number * 32 + LANES < block.threads
        self.positions = np.zeros(32, np.int64)
        self.registers: list[np.ndarray] = [
            np.zeros(32, np.bool_ if r.kind == "pred" else KINDS[r.kind]) for r in block.program.registers.values()
        ]
        self.copies: list[list[Callable[[], None]]] = [[]]  # groups of cp.async, the last one open
        self.stores: list[list[Callable[[], None]]] = [[]]  # groups of TMA stores
        self.products: list[list[tuple]] = [[]]  # groups of wgmma
        self.waiting: tuple[Any, int] | None = None  # a barrier and its generation when this warp arrived
        self.cluster_phase = np.zeros(32, np.int64)

    @property
    def done(self) -> bool:
        return not self.live.any()

    # -- operands

    def read(self, operand: Any, kind: str) -> np.ndarray:
        """32 values of a type; integers of another width are cut or extended with zeros."""
        if isinstance(operand, Register):
            value = self.registers[operand.index]
            if kind == "pred":
                return value
            if value.dtype.itemsize != size_of(kind):
                value = value.astype(KINDS["b" + kind[1:]])
            return value.view(KINDS[kind])
        if isinstance(operand, Immediate):
            bits = operand.value & ((1 << 8 * size_of(kind)) - 1)
            return np.full(32, bits, KINDS["b" + kind[1:]]).view(KINDS[kind])
        if isinstance(operand, Special):
            return self.special(operand.name).astype(KINDS["b" + kind[1:]]).view(KINDS[kind])
        raise PtxError(f"cannot read operand {operand}")

    def write(self, register: Register, value: np.ndarray, mask: np.ndarray) -> None:
        target = self.registers[register.index]
        if target.dtype != np.bool_ and value.dtype != target.dtype:
            if value.dtype.itemsize == target.dtype.itemsize:
                value = value.view(target.dtype)
            else:  # a narrow result in a wide register: integers are extended by their sign
                value = value.astype(np.int64 if value.dtype.kind == "i" else np.uint64).astype(target.dtype)
        target[mask] = value[mask]

    def addresses(self, operand: Address) -> np.ndarray:
        kind = "u64" if isinstance(operand.base, Immediate) or operand.base.kind == "b64" else "u32"
        return self.read(operand.base, kind).astype(np.int64) + operand.offset

    def scalar(self, operand: Any, kind: str, mask: np.ndarray) -> int:
        return int(self.read(operand, kind)[np.argmax(mask)])

    def special(self, name: str) -> np.ndarray:
        block, axis = self.block, "xyz".find(name[-1])
        threads = self.number * 32 + LANES
        x, y, _ = block.size
        found = {
            "%tid": (threads % x, threads // x % y, threads // (x * y)),
            "%ntid": block.size,
            "%ctaid": block.index,
            "%nctaid": block.grid,
        }.get(name.partition(".")[0])
        if found is not None and axis >= 0:
            return np.broadcast_to(np.asarray(found[axis], np.uint64), (32,))
        if name == "%cluster_ctarank":
            return np.full(32, block.rank, np.uint64)
        if name == "%laneid":
            return LANES.astype(np.uint64)
        raise PtxError(f"unknown special register {name}")


class Meeting:
    """A barrier: a count of arrivals, and a generation that changes when it is complete."""

    def __init__(self) -> None:
        self.arrived = self.generation = 0

    def arrive(self, count: int, expected: int) -> None:
        self.arrived += count
        if self.arrived > expected:
            raise PtxError(f"a barrier for {expected} has {self.arrived} arrivals")
        if self.arrived == expected:
            self.arrived = 0
            self.generation += 1


class TransactionBarrier:
    """An mbarrier."""

    def __init__(self, count: int):
        self.count = self.pending = count
        self.bytes = self.phase = 0

    def _complete(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phase ^= 1
            self.pending = self.count

    def arrive(self, expect: int = 0) -> None:
        self.bytes += expect
        if self.pending == 0:
            raise PtxError(f"mbarrier: more arrivals in a phase than the {self.count} it was initialised with")
        self.pending -= 1
        self._complete()

    def land(self, size: int) -> None:
        self.bytes -= size
        self._complete()


class Block:
    def __init__(self, cluster: Cluster, index, rank: int):
        self.cluster, self.program, self.index, self.rank = cluster, cluster.program, index, rank
        self.size, self.grid, self.memory, self.parameters = cluster.size, cluster.grid, cluster.memory, cluster.parameters
        self.threads = math.prod(self.size)
        self.shared = np.full(SHARED_START + self.program.shared_bytes + cluster.shared_bytes, 0xFF, np.uint8)
        self.writer = np.zeros(
            self.shared.size, np.uint16
        )  # the warp whose ordinary store the async proxy may not have seen, plus 1
        self.meetings: dict[Any, Meeting] = {}
        self.barriers: dict[int, TransactionBarrier] = {}
        self.warps = [Warp(self, i) for i in range(-(-self.threads // 32))]

    def meeting(self, key: Any) -> Meeting:
        return self.meetings.setdefault(key, Meeting())

    def barrier(self, address: int) -> TransactionBarrier:
        """The mbarrier at a shared address, of this block or another of the cluster."""
        owner = self.cluster.blocks[address >> RANK_SHIFT & 127] if address >> 31 else self  # see `mapa`
        found = owner.barriers.get(address & ((1 << RANK_SHIFT) - 1))
        if found is None:
            raise PtxError(f"no mbarrier was initialised at shared address {address:#x}")
        return found

    def check_shared(self, addresses: np.ndarray, size: int, text: str) -> None:
        if addresses.size and (addresses.min() < SHARED_START or addresses.max() + size > self.shared.size):
            raise PtxError(f"shared memory access out of bounds ({addresses.min():#x} to {addresses.max() + size:#x}): {text}")
        if (addresses % size).any():
            raise PtxError(f"misaligned shared memory access: {text}")

    def check_seen(self, addresses: np.ndarray, text: str) -> None:
        """Fails where the async proxy reads what an ordinary store wrote without a proxy fence since."""
        if self.writer[addresses].any():
            raise PtxError(f"the async proxy reads shared memory before fence.proxy.async by its writer: {text}")

    def locate(self, addresses: np.ndarray, space: str, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The array that holds generic or named addresses, and offsets into it."""
        if space == "shared":
            return self.shared, addresses
        first = int(addresses[0])
        if space == "param" or first >= PARAMETERS:
            return self.parameters, addresses - PARAMETERS
        if first >= WINDOW:
            return self.shared, addresses - WINDOW
        base, array = self.memory.find(first, 1, text)
        return array, addresses - base


class Cluster:
    """Blocks that run together, and the operations that are under way."""

    def __init__(self, program, memory, parameters, size, grid, shared_bytes, indices, rng: random.Random):
        self.program, self.memory, self.parameters, self.size, self.grid = program, memory, parameters, size, grid
        self.shared_bytes, self.rng = shared_bytes, rng
        self.pending: list[list] = []  # [rounds left, operation]
        self.meeting = Meeting()
        self.blocks = [Block(self, index, rank) for rank, index in enumerate(indices)]

    def later(self, operation: Callable[[], None]) -> None:
        self.pending.append([self.rng.randint(0, 3), operation])

    def coin(self) -> bool:
        return self.rng.random() < 0.5

    def live_threads(self) -> int:
        return sum(int(w.live.sum()) for b in self.blocks for w in b.warps)

    def run(self) -> None:
        warps = [w for b in self.blocks for w in b.warps]
        while active := [w for w in warps if not w.done]:
            self.rng.shuffle(active)
            moved = [step(warp, self.rng.randint(1, 300)) for warp in active]
            for item in list(self.pending):
                item[0] -= 1
                if item[0] < 0:
                    self.pending.remove(item)
                    item[1]()
                    moved.append(1)
            if not any(moved) and not self.pending:
                raise PtxError(self._deadlock(active))

    def _deadlock(self, warps: list[Warp]) -> str:
        places = {}
        for warp in warps:
            for position in np.unique(warp.positions[warp.live]):
                places.setdefault(self.program.instructions[position].text[:90], []).append((warp.block.rank, warp.number))
        return "deadlock: " + "; ".join(f"warps {where} wait at `{text}`" for text, where in places.items())


def step(warp: Warp, budget: int) -> int:
    """Runs up to `budget` instructions of a warp, until all its lanes must wait. Returns how many it ran."""
    from .instructions import execute

    program, ran = warp.block.program.instructions, 0
    while ran < budget and not warp.done:
        positions = np.unique(warp.positions[warp.live])
        for position in positions:  # those that are furthest behind first
            group = warp.live & (warp.positions == position)
            if execute(warp, program[position], group):
                ran += 1
                break
        else:
            return ran
    return ran


def interpret(
    program: Program,
    grid,
    block,
    shared_bytes: int,
    arguments,
    *,
    cluster: int = 1,
    seed: int = 0,
    encode: Callable[[Any, int], bytes] | None = None,
) -> None:
    """Runs one launch. arguments: NumPy arrays (written in place), None, bytes of a structure, NumPy scalars, or an object
    with an `array` (a tensor map), which `encode(object, address)` turns into bytes. Raises PtxError."""
    rng, memory = random.Random(seed), Memory()
    three = lambda v: (v, 1, 1) if isinstance(v, int) else (*v, *(1,) * (3 - len(v)))  # noqa: E731
    grid, block = three(grid), three(block)
    if len(arguments) != len(program.parameters):
        raise PtxError(f"the kernel takes {len(program.parameters)} arguments, {len(arguments)} were given")
    parameters = np.zeros(max(program.parameter_bytes, 8), np.uint8)
    for (offset, size), value in zip(program.parameters, arguments, strict=True):
        if isinstance(value, np.ndarray):
            value = memory.place(value).to_bytes(8, "little")
        elif value is None:
            value = bytes(8)
        elif hasattr(value, "array"):
            value = encode(value, memory.place(value.array))
        elif not isinstance(value, bytes):
            value = value.tobytes()
        if len(value) != size:
            raise PtxError(f"a parameter has {size} bytes, {len(value)} were given")
        parameters[offset : offset + size] = np.frombuffer(value, np.uint8)
    order = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(0, grid[0], cluster)]
    rng.shuffle(order)
    with np.errstate(all="ignore"):
        for x, y, z in order:
            indices = [(x + i, y, z) for i in range(cluster)]
            Cluster(program, memory, parameters, block, grid, shared_bytes, indices, rng).run()


__all__ = ["Instruction", "PtxError", "interpret"]
