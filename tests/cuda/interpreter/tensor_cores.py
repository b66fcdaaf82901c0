"""ldmatrix, stmatrix, mma.sync and wgmma: fragments after the figures of NVIDIA's "Parallel Thread Execution ISA"."""

from __future__ import annotations

import re

import numpy as np

from .machine import LANES, Warp
from .parser import Instruction, PtxError

GROUP, WITHIN = LANES // 4, LANES % 4


def _unknown(ins: Instruction) -> PtxError:
    return PtxError(f"unknown form of an instruction: {ins.text}")


def load_matrices(warp: Warp, ins: Instruction, mask: np.ndarray) -> None:
    transposed = "trans" in ins.parts
    if tuple(p for p in ins.parts if p != "trans") != ("ldmatrix", "sync", "aligned", "m8n8", "x4", "shared", "b16"):
        raise _unknown(ins)
    block, addresses = warp.block, warp.addresses(ins.operands[1])
    block.check_shared(addresses, 16, ins.text)
    for j, register in enumerate(ins.operands[0].items):
        rows = block.shared[addresses[8 * j : 8 * j + 8, None] + np.arange(16)].view(np.uint16)
        rows = rows.T if transposed else rows
        pairs = np.stack([rows[GROUP, WITHIN * 2], rows[GROUP, WITHIN * 2 + 1]], 1)
        warp.write(register, np.ascontiguousarray(pairs).view(np.uint32)[:, 0], mask)


def store_matrices(warp: Warp, ins: Instruction, mask: np.ndarray) -> None:
    if ins.parts != ("stmatrix", "sync", "aligned", "m8n8", "x4", "shared", "b16"):
        raise _unknown(ins)
    block, addresses = warp.block, warp.addresses(ins.operands[0])
    block.check_shared(addresses, 16, ins.text)
    for j, register in enumerate(ins.operands[1].items):
        where = (addresses[8 * j + GROUP] + WITHIN * 4)[:, None] + np.arange(4)
        block.shared[where] = warp.read(register, "b32").copy().view(np.uint8).reshape(32, 4)
        block.writer[where] = warp.number + 1


def values(words: np.ndarray, kind: str) -> np.ndarray:
    """32-bit words to the numbers they hold, along a new last axis."""
    words = np.ascontiguousarray(words, np.uint32)
    if kind == "f16":
        return words[..., None].view(np.float16).astype(np.float32)
    if kind == "bf16":
        return (words[..., None].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if kind == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32)[..., None]
    return words[..., None].view(np.int8).astype(np.int32)


_FORMS = {  # operand words of A and B for each shape and type
    ("m16n8k16", "bf16"): (4, 2),
    ("m16n8k16", "f16"): (4, 2),
    ("m16n8k8", "f16"): (2, 1),
    ("m16n8k8", "tf32"): (4, 2),
    ("m16n8k32", "s8"): (4, 2),
    ("m8n8k16", "s8"): (1, 1),
}


def mma(warp: Warp, ins: Instruction, mask: np.ndarray) -> None:
    shape, kind, total = ins.parts[3], ins.parts[7], ins.parts[6]
    expected = ("mma", "sync", "aligned", shape, "row", "col", total, kind, kind, total)
    if ins.parts != expected or (shape, kind) not in _FORMS or total != ("s32" if kind == "s8" else "f32"):
        raise _unknown(ins)
    d, a, b, c = (o.items for o in ins.operands)
    if (len(a), len(b)) != _FORMS[shape, kind]:
        raise _unknown(ins)
    rows = int(re.match(r"m(\d+)", shape).group(1))
    per_word = 4 // {"f16": 2, "bf16": 2, "tf32": 4, "s8": 1}[kind]
    number = np.int32 if kind == "s8" else np.float32
    depth = 4 * per_word * (len(a) * 8 // rows)
    left, right = np.zeros((rows, depth), number), np.zeros((depth, 8), number)
    inner = WITHIN[:, None] * per_word + np.arange(per_word)
    for j, register in enumerate(a):
        row, half = (j % 2, j // 2) if rows == 16 else (0, j)
        left[(GROUP + 8 * row)[:, None], inner + 4 * per_word * half] = values(warp.read(register, "b32"), kind)
    for j, register in enumerate(b):
        right[inner + 4 * per_word * j, GROUP[:, None]] = values(warp.read(register, "b32"), kind)
    product = left @ right
    for j, (target, start) in enumerate(zip(d, c, strict=True)):
        added = product[GROUP + 8 * (j // 2), WITHIN * 2 + j % 2]
        warp.write(target, (warp.read(start, total) + added).astype(number), mask)


# -- wgmma -------------------------------------------------------------------------------------------------------------


def wgmma(warp: Warp, ins: Instruction, mask: np.ndarray) -> bool | None:
    from .instructions import meet

    what = ins.parts[1]
    if what == "mma_async":
        warp.products[-1].append(_product(warp, ins, mask))
    elif what == "commit_group":
        warp.products.append([])
    elif what == "wait_group":
        if not meet(warp, ("warpgroup", warp.number // 4), 1, 4):
            return False
        while len(warp.products) - 1 > ins.operands[0].value:
            for product in warp.products.pop(0):
                _run_product(warp, *product)
    elif what == "fence":
        return meet(warp, ("warpgroup", warp.number // 4), 1, 4)
    else:
        raise _unknown(ins)
    return None


def _product(warp: Warp, ins: Instruction, mask: np.ndarray) -> tuple:
    shape, total, kind = ins.parts[4:7]
    if (
        ins.parts[:4] != ("wgmma", "mma_async", "sync", "aligned")
        or kind != ins.parts[7]
        or kind not in ("f16", "bf16", "tf32", "s8")
    ):
        raise _unknown(ins)
    depth = {"f16": 16, "bf16": 16, "tf32": 8, "s8": 32}[kind]
    registers, a, b, predicate, *rest = ins.operands
    columns = int(re.fullmatch(rf"m64n(\d+)k{depth}", shape).group(1))
    count = 4 if kind in ("f16", "bf16") else 0 if kind == "s8" else 2  # immediates: signs of A and B, transpositions
    if len(registers.items) != columns // 2 or len(rest) != count or total != ("s32" if kind == "s8" else "f32"):
        raise _unknown(ins)
    immediates = [o.value for o in rest]
    if any(v != 1 for v in immediates[:2]):
        raise _unknown(ins)
    transposed = immediates[2:] or (0, 0)
    descriptors = [warp.read(o, "u64") for o in (a, b)]
    if any((d != d[0]).any() for d in descriptors):
        raise PtxError(f"lanes have different descriptors: {ins.text}")
    accumulate = bool(warp.read(predicate, "pred")[0])
    return registers.items, int(descriptors[0][0]), int(descriptors[1][0]), transposed, accumulate, kind, depth, ins.text


def _operand(
    warp: Warp, descriptor: int, rows: np.ndarray, depth: int, kind: str, mn_contiguous: bool, text: str
) -> np.ndarray:
    """The [rows, depth] numbers of an operand with the 128-byte swizzle."""
    if descriptor >> 62 != 1:
        raise PtxError(f"the descriptor does not say 128-byte swizzle: {text}")
    start, far, near = (descriptor & 0x3FFF) << 4, (descriptor >> 16 & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    item = {"f16": 2, "bf16": 2, "tf32": 4, "s8": 1}[kind]
    r, k = rows[:, None], np.arange(depth)[None, :]
    line = 128 // item
    if mn_contiguous:
        addresses = start + r // line * far + k // 8 * near + k % 8 * 128 + r % line * item
    else:
        addresses = start + r // 8 * near + r % 8 * 128 + k * item
    addresses = addresses ^ (addresses >> 7 & 7) << 4
    block = warp.block
    block.check_shared(addresses.reshape(-1), item, text)
    block.check_seen(addresses.reshape(-1), text)
    raw = block.shared[addresses[..., None] + np.arange(item)]
    if kind == "s8":
        return raw.view(np.int8)[..., 0].astype(np.int32)
    if kind == "f16":
        return raw.view(np.float16)[..., 0].astype(np.float32)
    if kind == "bf16":
        return (raw.view(np.uint16)[..., 0].astype(np.uint32) << 16).view(np.float32)
    return (raw.view(np.uint32)[..., 0] & np.uint32(0xFFFFE000)).view(np.float32)


def _run_product(warp: Warp, registers, a, b, transposed, accumulate, kind, depth, text) -> None:
    columns = len(registers) * 2
    left = _operand(warp, a, warp.number % 4 * 16 + np.arange(16), depth, kind, bool(transposed[0]), text)
    right = _operand(warp, b, np.arange(columns), depth, kind, bool(transposed[1]), text)
    product = left @ right.T
    for j, register in enumerate(registers):
        value = product[GROUP + 8 * (j // 2 % 2), j // 4 * 8 + WITHIN * 2 + j % 2]
        target = warp.registers[register.index].view(value.dtype)
        target[:] = target + value if accumulate else value
