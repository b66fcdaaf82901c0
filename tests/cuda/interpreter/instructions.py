"""What each PTX instruction does, after NVIDIA's "Parallel Thread Execution ISA". `execute` is False where lanes must wait."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from . import tensor_cores
from .machine import LANES, RANK_SHIFT, WINDOW, Warp
from .parser import KINDS, Address, Immediate, Instruction, PtxError, Tensor, Vector, size_of

Handler = Callable[[Warp, Instruction, np.ndarray], "bool | None"]


def execute(warp: Warp, ins: Instruction, group: np.ndarray) -> bool:
    """Runs an instruction for the lanes of `group`, which all stand at it. False, and nothing done, where they must wait."""
    mask = group
    if ins.guard is not None:
        register, negated = ins.guard
        value = warp.registers[register.index]
        mask = group & (~value if negated else value)
    name = ins.parts[0]
    if name == "bra":
        warp.positions[group] += 1
        warp.positions[mask] = warp.block.program.labels[ins.operands[0].name]
        return True
    if name in ("ret", "exit"):
        warp.positions[group] += 1
        warp.live = warp.live & ~mask
        return True
    if mask.any():
        if _needs_convergence(ins) and not (mask == warp.live).all():
            return False
        handler = HANDLERS.get(name)
        if handler is None:
            raise PtxError(f"unknown instruction: {ins.text}")
        if handler(warp, ins, mask) is False:
            return False
    warp.positions[group] += 1
    return True


def _needs_convergence(ins: Instruction) -> bool:
    return "aligned" in ins.parts or ins.parts[0] == "bar"


def unknown(ins: Instruction) -> PtxError:
    return PtxError(f"unknown form of an instruction: {ins.text}")


# -- arithmetic --------------------------------------------------------------------------------------------------------


def _modifiers(ins: Instruction, allowed: str) -> None:
    extra = set(ins.parts[1:-1]) - set(allowed.split())
    if extra:
        raise PtxError(f"unknown modifier {sorted(extra)}: {ins.text}")


def _binary(function, predicates=None, allowed="rn lo") -> Handler:
    def run(warp, ins, mask):
        _modifiers(ins, allowed)
        target, left, right = ins.operands
        kind = ins.parts[-1]
        chosen = predicates if kind == "pred" and predicates else function
        warp.write(target, chosen(warp.read(left, kind), warp.read(right, kind)), mask)

    return run


def _unary(function, allowed="") -> Handler:
    def run(warp, ins, mask):
        _modifiers(ins, allowed)
        kind = ins.parts[-1]
        warp.write(
            ins.operands[0],
            function(warp.read(ins.operands[1], kind)).astype(np.bool_ if kind == "pred" else KINDS[kind]),
            mask,
        )

    return run


def _divide(warp, ins, mask):
    _modifiers(ins, "rn full approx")
    kind = ins.parts[-1]
    a, b = warp.read(ins.operands[1], kind), warp.read(ins.operands[2], kind)
    if kind[0] == "f":
        result = a / b
    else:
        safe = np.where(b == 0, b.dtype.type(1), b)
        result = np.where(b == 0, b.dtype.type(-1) if kind[0] == "s" else ~b.dtype.type(0), _truncated(a, safe))
    warp.write(ins.operands[0], result.astype(KINDS[kind]), mask)


def _truncated(a, b):
    quotient = a // b
    return quotient + ((a % b != 0) & ((a < 0) != (b < 0))) if a.dtype.kind == "i" else quotient


def _remainder(warp, ins, mask):
    kind = ins.parts[-1]
    a, b = warp.read(ins.operands[1], kind), warp.read(ins.operands[2], kind)
    safe = np.where(b == 0, b.dtype.type(1), b)
    warp.write(ins.operands[0], (a - _truncated(a, safe) * safe).astype(KINDS[kind]), mask)


def _multiply(warp, ins, mask):
    """mul and mad, in the forms lo, hi, wide and of floating point."""
    _modifiers(ins, "lo hi wide rn")
    kind = ins.parts[-1]
    a, b = warp.read(ins.operands[1], kind), warp.read(ins.operands[2], kind)
    if "wide" in ins.parts or "hi" in ins.parts:
        if size_of(kind) == 8:
            raise unknown(ins)
        double = kind[0] + str(size_of(kind) * 16)
        result = a.astype(KINDS[double]) * b.astype(KINDS[double])
        if "hi" in ins.parts:
            result = (result >> result.dtype.type(size_of(kind) * 8)).astype(KINDS[kind])
        else:
            kind = double
    else:
        result = a * b
    if ins.parts[0] == "mad":
        result = result + warp.read(ins.operands[3], kind)
    warp.write(ins.operands[0], result, mask)


def _fma(warp, ins, mask):
    _modifiers(ins, "rn")
    kind = ins.parts[-1]
    if kind != "f32":
        raise unknown(ins)
    a, b, c = (warp.read(o, kind).astype(np.float64) for o in ins.operands[1:])
    warp.write(ins.operands[0], (a * b + c).astype(np.float32), mask)


def _shift(warp, ins, mask):
    kind = ins.parts[-1]
    bits = size_of(kind) * 8
    value, count = warp.read(ins.operands[1], kind), warp.read(ins.operands[2], "u32")
    if ins.parts[0] == "shr":
        result = value >> np.minimum(count, bits - 1).astype(value.dtype)
        if kind[0] != "s":
            result = np.where(count >= bits, value.dtype.type(0), result)
    else:
        result = np.where(count >= bits, value.dtype.type(0), value << np.minimum(count, bits - 1).astype(value.dtype))
    warp.write(ins.operands[0], result.astype(value.dtype), mask)


COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _setp(warp, ins, mask):
    kind, name = ins.parts[-1], ins.parts[1]
    a, b = warp.read(ins.operands[1], kind), warp.read(ins.operands[2], kind)
    unordered = kind[0] == "f" and name[-1] == "u" and name != "lu"
    if name == "nan":
        result = np.isnan(a) | np.isnan(b)
    elif name == "num":
        result = ~(np.isnan(a) | np.isnan(b))
    elif (name[:-1] if unordered else name) not in COMPARE:
        raise unknown(ins)
    else:
        result = COMPARE[name[:-1] if unordered else name](a, b)
        if kind[0] == "f":
            either = np.isnan(a) | np.isnan(b)
            result = result | either if unordered else result & ~either
    if len(ins.parts) == 4:
        if ins.parts[2] not in COMBINE:
            raise unknown(ins)
        result = COMBINE[ins.parts[2]](result, warp.read(ins.operands[3], "pred"))
    warp.write(ins.operands[0], result, mask)


def _selp(warp, ins, mask):
    kind = ins.parts[-1]
    chosen = np.where(warp.read(ins.operands[3], "pred"), warp.read(ins.operands[1], kind), warp.read(ins.operands[2], kind))
    warp.write(ins.operands[0], chosen, mask)


def _move(warp, ins, mask):
    kind = ins.parts[-1]
    target, source = ins.operands
    if isinstance(source, Vector):  # packs narrow registers into a wide one
        part = f"b{size_of(kind) * 8 // len(source.items)}"
        result = np.zeros(32, KINDS[kind])
        for i, item in enumerate(source.items):
            result |= warp.read(item, part).astype(KINDS[kind]) << KINDS[kind](size_of(part) * 8 * i)
        warp.write(target, result, mask)
    elif isinstance(target, Vector):
        part = f"b{size_of(kind) * 8 // len(target.items)}"
        value = warp.read(source, kind)
        for i, item in enumerate(target.items):
            warp.write(item, (value >> KINDS[kind](size_of(part) * 8 * i)).astype(KINDS[part]), mask)
    else:
        warp.write(target, warp.read(source, kind).copy(), mask)


def _convert_address(warp, ins, mask):
    value = warp.read(ins.operands[1], ins.parts[-1]).copy()
    if "shared" in ins.parts:
        value = value - np.uint64(WINDOW) if "to" in ins.parts else value + np.uint64(WINDOW)
    warp.write(ins.operands[0], value, mask)


def bf16_to_float(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float_to_bf16(value: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), rounded)


def _convert(warp, ins, mask):
    target, source = ins.parts[-2], ins.parts[-1]
    modes = set(ins.parts[1:-2])
    if modes - {"rn", "rni", "rzi", "rmi", "rpi", "rz", "rna", "sat"}:
        raise unknown(ins)
    value = bf16_to_float(warp.read(ins.operands[1], "b16")) if source == "bf16" else warp.read(ins.operands[1], source)
    if target == "tf32":
        if modes != {"rna"}:
            raise unknown(ins)
        bits = value.view(np.uint32)
        result = np.where((bits & 0x7F800000) == 0x7F800000, bits, (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000))
    elif target == "bf16":
        result = float_to_bf16(value)
    elif value.dtype.kind == "f" and target[0] in "su":
        rounded = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[next(iter(modes - {"sat"}))](
            value.astype(np.float64)
        )
        limits = np.iinfo(KINDS[target])
        result = np.clip(np.nan_to_num(rounded, nan=0), limits.min, limits.max).astype(KINDS[target])
    else:
        if "sat" in modes:
            raise unknown(ins)
        result = value.astype(KINDS[target])
    warp.write(ins.operands[0], result, mask)


def _permute(warp, ins, mask):
    if ins.parts[1:] != ("b32",):
        raise unknown(ins)
    a, b, selector = (warp.read(o, "u32") for o in ins.operands[1:])
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros(32, np.uint32)
    for i in range(4):
        nibble = selector >> np.uint32(4 * i) & np.uint32(15)
        byte = (both >> ((nibble & 7) * 8).astype(np.uint64) & np.uint64(255)).astype(np.uint32)
        byte = np.where(nibble & 8, np.where(byte & 128, np.uint32(255), np.uint32(0)), byte)
        result |= byte << np.uint32(8 * i)
    warp.write(ins.operands[0], result, mask)


def _insert_bits(warp, ins, mask):
    if ins.parts[1:] != ("b32",):
        raise unknown(ins)
    a, b, start, length = (warp.read(o, "u32").astype(np.uint64) for o in ins.operands[1:])
    field = (np.uint64(1) << length) - np.uint64(1)
    result = b & ~(field << start) | (a & field) << start
    warp.write(ins.operands[0], result.astype(np.uint32), mask)


# -- memory ------------------------------------------------------------------------------------------------------------

_SPACES = ("shared", "global", "param")


def _access(warp, ins, mask):
    load = ins.parts[0] == "ld"
    place, values = ins.operands[1 if load else 0], ins.operands[0 if load else 1]
    kind, items = ins.parts[-1], values.items if isinstance(values, Vector) else (values,)
    _modifiers(ins, "shared global param v2 v4 nc volatile")
    space = next((s for s in _SPACES if s in ins.parts), "")
    size, block = size_of(kind), warp.block
    addresses = warp.addresses(place)[mask]
    array, offsets = block.locate(addresses, space, ins.text)
    total = size * len(items)
    if array is block.shared:
        block.check_shared(offsets, total, ins.text)
    elif offsets.min() < 0 or offsets.max() + total > array.size:
        raise PtxError(f"access out of bounds of its array: {ins.text}")
    elif (addresses % total).any():
        raise PtxError(f"misaligned access: {ins.text}")
    for i, item in enumerate(items):
        where = offsets[:, None] + (i * size + np.arange(size))
        if load:
            value = np.zeros(32, KINDS[kind])
            value[mask] = array[where].view(KINDS[kind])[:, 0]
            warp.write(item, value, mask)
        else:
            array[where] = np.ascontiguousarray(warp.read(item, kind)[mask]).view(np.uint8).reshape(-1, size)
            if array is block.shared:
                block.writer[where] = warp.number + 1


def _copy_async(warp, ins, mask):
    if ins.parts[2] == "commit_group":
        if warp.block.cluster.coin():
            _run_all(warp.copies[-1])
        warp.copies.append([])
    elif ins.parts[2] == "wait_group":
        _settle(warp.copies, ins.operands[0].value)
    elif ins.parts[2] in ("ca", "cg") and ins.parts[3:] == ("shared", "global"):
        _start_copies(warp, ins, mask)
    else:
        raise unknown(ins)


def _run_all(group: list) -> None:
    for operation in group:
        operation()
    group.clear()


def _settle(groups: list[list], pending: int) -> None:
    while len(groups) - 1 > pending:
        _run_all(groups.pop(0))


def _start_copies(warp, ins, mask):
    block, size = warp.block, ins.operands[2].value
    targets = warp.addresses(ins.operands[0])[mask]
    sources = warp.addresses(ins.operands[1])[mask]
    given = warp.read(ins.operands[3], "u32")[mask] if len(ins.operands) > 3 else np.full(mask.sum(), size)
    block.check_shared(targets, size, ins.text)
    if (sources[given > 0] % size).any():
        raise PtxError(f"misaligned source: {ins.text}")

    def copy():
        for target, source, count in zip(targets.tolist(), sources.tolist(), given.tolist(), strict=True):
            block.shared[target : target + size] = 0
            if count:
                base, array = block.memory.find(source, count, ins.text)
                block.shared[target : target + count] = array[source - base : source - base + count]

    warp.copies[-1].append(copy)


# -- barriers ----------------------------------------------------------------------------------------------------------


def meet(warp: Warp, key, count: int, expected: int) -> bool:
    """Arrives at a meeting of warps and waits there. True when it is complete."""
    meeting = warp.block.meeting(key)
    if warp.waiting is None:
        warp.waiting = (key, meeting.generation)
        meeting.arrive(count, expected)
    if meeting.generation == warp.waiting[1]:
        return False
    warp.waiting = None
    return True


def _block_barrier(warp, ins, mask):
    if ins.parts[1:] == ("warp", "sync"):
        return None  # the lanes are converged
    if ins.parts[1:] != ("sync",):
        raise unknown(ins)
    live = sum(1 for w in warp.block.warps if not w.done)
    number = warp.scalar(ins.operands[0], "u32", mask)
    expected = warp.scalar(ins.operands[1], "u32", mask) // 32 if len(ins.operands) > 1 else live
    return meet(warp, number, 1, expected)


def _cluster_barrier(warp, ins, mask):
    cluster = warp.block.cluster
    if ins.parts[1:3] == ("cluster", "arrive"):
        warp.cluster_phase[mask] = cluster.meeting.generation
        cluster.meeting.arrive(int(mask.sum()), cluster.live_threads())
        return None
    if ins.parts[1:3] == ("cluster", "wait"):
        return not (warp.cluster_phase[mask] == cluster.meeting.generation).any()
    raise unknown(ins)


def _mbarrier(warp, ins, mask):
    block, what = warp.block, ins.parts[1]
    place = next(o for o in ins.operands if isinstance(o, Address))
    addresses = warp.addresses(place)
    if what == "init":
        address = int(addresses[mask][0])
        block.check_shared(np.array([address]), 8, ins.text)
        block.barriers[address] = type_of_barrier()(warp.scalar(ins.operands[1], "u32", mask))
    elif what == "arrive":
        for lane in LANES[mask]:
            expect = int(warp.read(ins.operands[2], "u32")[lane]) if "expect_tx" in ins.parts else 0
            block.barrier(int(addresses[lane])).arrive(expect)
    elif what == "try_wait" and "parity" in ins.parts:
        parity = warp.read(ins.operands[2], "u32") & 1
        for lane in LANES[mask]:
            if block.barrier(int(addresses[lane])).phase == parity[lane]:
                return False  # the hardware may wait here as well
        warp.write(ins.operands[0], np.ones(32, np.bool_), mask)
    else:
        raise unknown(ins)
    return None


def type_of_barrier():
    from .machine import TransactionBarrier

    return TransactionBarrier


def _map_address(warp, ins, mask):
    if ins.opcode != "mapa.shared::cluster.u32":
        raise unknown(ins)
    address, rank = warp.read(ins.operands[1], "u32"), warp.read(ins.operands[2], "u32")
    if (rank[mask] >= len(warp.block.cluster.blocks)).any():
        raise PtxError(f"no such block in the cluster: {ins.text}")
    # Bit 31 marks an address of the cluster's window, so that rank 0 is told from an address of the own block.
    warp.write(
        ins.operands[0], address & np.uint32((1 << RANK_SHIFT) - 1) | rank << np.uint32(RANK_SHIFT) | np.uint32(1 << 31), mask
    )


def _fence(warp, ins, mask):
    if ins.opcode == "fence.proxy.async.shared::cta":
        writer = warp.block.writer
        writer[writer == warp.number + 1] = 0
    elif ins.opcode != "fence.mbarrier_init.release.cluster":
        raise unknown(ins)


def _nothing(*known: str) -> Handler:
    def run(warp, ins, mask):
        if ins.opcode not in known:
            raise unknown(ins)

    return run


# -- TMA ---------------------------------------------------------------------------------------------------------------


class TensorMap:
    """The emulator's encoding of a tensor map (emulator/tensor_map.py)."""

    def __init__(self, data: bytes):
        self.base, rank, self.item, self.im2col, _ = struct.unpack_from("<Q4B", data)
        self.sizes = struct.unpack_from("<4I", data, 12)[:rank]
        self.strides = (self.item, *struct.unpack_from("<3q", data, 32)[: rank - 1])
        self.box = struct.unpack_from("<4H", data, 56)[: 2 if self.im2col else rank]
        self.steps = struct.unpack_from("<4B", data, 64)[:rank]
        corners = struct.unpack_from("<4b", data, 68)
        self.lower, self.upper = corners[:2], corners[2:]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.box)) * self.item

    def elements(self, at, offsets) -> tuple[np.ndarray, np.ndarray]:
        """Addresses of the box's elements in the order of shared memory, and which of them lie inside of the tensor."""
        if self.im2col:
            places = self._pixels(at, offsets)
        else:
            grids = np.meshgrid(*(np.arange(n) for n in reversed(self.box)), indexing="ij")
            places = [g.reshape(-1) + a for g, a in zip(reversed(grids), at, strict=True)]
        inside = np.all([(p >= 0) & (p < n) for p, n in zip(places, self.sizes, strict=True)], axis=0)
        return self.base + sum(p * s for p, s in zip(places, self.strides, strict=True)), inside

    def _pixels(self, at, offsets) -> list[np.ndarray]:
        channels, count = self.box
        c0, x, y, n = at
        found = []
        for _ in range(count):
            found.append((x + offsets[0], y + offsets[1], n))
            x += self.steps[1]
            if x >= self.sizes[1] + self.upper[0]:
                x, y = self.lower[0], y + self.steps[2]
                if y >= self.sizes[2] + self.upper[1]:
                    y, n = self.lower[1], n + 1
        pixels = np.repeat(np.array(found), channels, axis=0)
        return [np.tile(np.arange(channels) + c0, count), *pixels.T]


def swizzle(addresses: np.ndarray) -> np.ndarray:
    return addresses ^ (addresses >> 7 & 7) << 4


def _tensor_copy(warp, ins, mask):
    if mask.sum() != 1:
        raise PtxError(f"TMA by more than one lane: {ins.text}")
    store = "bulk_group" in ins.parts
    tensor = ins.operands[0 if store else 1]
    if not isinstance(tensor, Tensor):
        raise unknown(ins)
    parameter = warp.scalar(tensor.map, "u64", mask)
    array, offset = warp.block.locate(np.array([parameter]), "", ins.text)
    tma = TensorMap(array[offset[0] : offset[0] + 128].tobytes())
    at = [warp.scalar(c, "s32", mask) for c in tensor.coordinates.items]
    shared = int(warp.addresses(ins.operands[1 if store else 0])[mask][0])
    if len(at) != len(tma.sizes) or ("im2col" in ins.parts) != bool(tma.im2col):
        raise PtxError(f"the tensor map is of another kind: {ins.text}")
    if shared % 1024:
        raise PtxError(f"shared address {shared:#x} of a swizzled box is not aligned to 1024 bytes: {ins.text}")
    (_tensor_store if store else _tensor_load)(warp, ins, mask, tma, at, shared)


def _tensor_load(warp, ins, mask, tma, at, shared):
    known = {
        "cp",
        "async",
        "bulk",
        "tensor",
        "3d",
        "4d",
        "shared::cluster",
        "global",
        "tile",
        "im2col",
        "mbarrier::complete_tx::bytes",
        "multicast::cluster",
    }
    if set(ins.parts) - known:
        raise unknown(ins)
    block, rest = warp.block, list(ins.operands[3:])
    barrier = int(warp.addresses(ins.operands[2])[mask][0])
    offsets = [warp.scalar(o, "u16", mask) for o in rest.pop(0).items] if tma.im2col else (0, 0)
    ranks = warp.scalar(rest.pop(0), "u16", mask) if "multicast::cluster" in ins.parts else 1 << block.rank
    addresses, inside = tma.elements(at, offsets)

    def land(target):
        content = np.zeros((addresses.size, tma.item), np.uint8)
        if inside.any():
            base, array = block.memory.find(int(addresses[inside].min()), 1, ins.text)
            content[inside] = array[(addresses[inside] - base)[:, None] + np.arange(tma.item)]
        where = swizzle(shared + np.arange(tma.bytes))
        target.check_shared(where, 1, ins.text)
        target.shared[where] = content.reshape(-1)
        target.writer[where] = 0
        target.barriers[barrier].land(tma.bytes)

    for rank in range(16):
        if ranks >> rank & 1:
            target = block.cluster.blocks[rank]
            block.cluster.later(lambda target=target: land(target))


def _tensor_store(warp, ins, mask, tma, at, shared):
    if ins.parts[4:] != ("3d", "global", "shared::cta", "tile", "bulk_group"):
        raise unknown(ins)
    block = warp.block
    addresses, inside = tma.elements(at, (0, 0))
    where = swizzle(shared + np.arange(tma.bytes))
    block.check_shared(where, 1, ins.text)
    block.check_seen(where, ins.text)

    def copy():
        content = block.shared[where].reshape(-1, tma.item)[inside]
        if inside.any():
            base, array = block.memory.find(int(addresses[inside].min()), 1, ins.text)
            array[(addresses[inside] - base)[:, None] + np.arange(tma.item)] = content

    warp.stores[-1].append(copy)


def _copy(warp, ins, mask):
    if ins.parts[:3] != ("cp", "async", "bulk"):
        return _copy_async(warp, ins, mask)
    if ins.parts[3] == "tensor":
        _tensor_copy(warp, ins, mask)
    elif ins.parts[3] == "commit_group":
        if warp.block.cluster.coin():
            _run_all(warp.stores[-1])
        warp.stores.append([])
    elif ins.parts[3] == "wait_group":
        _settle(warp.stores, ins.operands[0].value)
    else:
        raise unknown(ins)
    return None


HANDLERS: dict[str, Handler] = {
    "add": _binary(np.add),
    "sub": _binary(np.subtract),
    "and": _binary(np.bitwise_and, np.logical_and),
    "or": _binary(np.bitwise_or, np.logical_or),
    "xor": _binary(np.bitwise_xor, np.logical_xor),
    "min": _binary(np.fmin),
    "max": _binary(np.fmax),
    "div": _divide,
    "rem": _remainder,
    "mul": _multiply,
    "mad": _multiply,
    "fma": _fma,
    "neg": _unary(np.negative),
    "abs": _unary(np.abs),
    "not": _unary(np.invert),
    "ex2": _unary(np.exp2, "approx"),
    "lg2": _unary(np.log2, "approx"),
    "rcp": _unary(np.reciprocal, "approx rn"),
    "sqrt": _unary(np.sqrt, "rn approx"),
    "rsqrt": _unary(lambda x: 1 / np.sqrt(x), "approx"),
    "shl": _shift,
    "shr": _shift,
    "setp": _setp,
    "selp": _selp,
    "mov": _move,
    "cvta": _convert_address,
    "cvt": _convert,
    "prmt": _permute,
    "bfi": _insert_bits,
    "ld": _access,
    "st": _access,
    "cp": _copy,
    "bar": _block_barrier,
    "barrier": _cluster_barrier,
    "mbarrier": _mbarrier,
    "mapa": _map_address,
    "fence": _fence,
    "prefetch": _nothing("prefetch.tensormap"),
    "setmaxnreg": _nothing("setmaxnreg.inc.sync.aligned.u32", "setmaxnreg.dec.sync.aligned.u32"),
    "ldmatrix": tensor_cores.load_matrices,
    "stmatrix": tensor_cores.store_matrices,
    "mma": tensor_cores.mma,
    "wgmma": tensor_cores.wgmma,
}

__all__ = ["Immediate", "execute", "meet"]
