"""Messages in the object headers of HDF5 files: shapes, types, filters, attributes.

Source: HDF5 File Format Specification, version 3.0, section IV.A.2. See `hdf5_format` for what is read and why.
"""

from __future__ import annotations

import math
import struct

import numpy as np

RANK_CEILING = 32
DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
_U32 = struct.Struct("<I")
_FLOATS = {  # size -> (offset, precision, exponent at, exponent bits, mantissa at, mantissa bits, bias) of IEEE formats
    2: (0, 16, 10, 5, 0, 10, 15), 4: (0, 32, 23, 8, 0, 23, 127), 8: (0, 64, 52, 11, 0, 52, 1023),
}  # fmt: skip


class Unusual(Exception):
    """A feature of HDF5 that this reader leaves to the library."""


class Damaged(Exception):
    """What contradicts the format."""


class Text:
    """The type of strings: fixed size, or of variable length in a global heap (size 16 in the file)."""

    kind = "S"

    def __init__(self, itemsize: int, variable: bool, spaces: bool = False):
        self.itemsize, self.variable, self.spaces = itemsize, variable, spaces

    def __repr__(self) -> str:
        return "text"


def unpack(form: struct.Struct, data: bytes, at: int = 0) -> tuple:
    if at + form.size > len(data):
        raise Damaged("a header message is cut off")
    return form.unpack_from(data, at)


def parse_space(data: bytes) -> tuple[int, ...]:
    version, rank, _ = unpack(struct.Struct("<BBB"), data)
    if version not in (1, 2) or rank > RANK_CEILING:
        raise Damaged("an array's shape is unknown")
    if version == 2 and len(data) > 3 and data[3] == 2:
        raise Unusual("an array without shape")
    shape = unpack(struct.Struct(f"<{rank}Q"), data, 8 if version == 1 else 4)
    if math.prod(n for n in shape if n) >= 1 << 58:
        raise Damaged(f"an array claims the shape {shape}")
    return shape


def parse_type(data: bytes) -> np.dtype | Text:
    """A NumPy dtype for numbers, `Text` for strings; bfloat16 is opaque in files and comes as "V2"."""
    first, low, middle, _, size = unpack(struct.Struct("<BBBBI"), data)
    kind, version = first & 15, first >> 4
    if version not in (1, 2, 3):
        raise Damaged("an array's type is unknown")
    if not 0 < size < 1 << 24:
        raise Damaged(f"an array's elements claim {size:,} bytes")
    order = ">" if low & 1 else "<"
    if kind == 0 and size in (1, 2, 4, 8) and unpack(struct.Struct("<HH"), data, 8) == (0, 8 * size):
        return np.dtype(f"{order}{'i' if low & 8 else 'u'}{size}")
    if kind == 1 and size in _FLOATS and not low & 64:
        layout = unpack(struct.Struct("<HHBBBBI"), data, 8)
        if layout == _FLOATS[size] and middle == 8 * size - 1 and low >> 4 & 3 == 2:
            return np.dtype(f"{order}f{size}")
    if kind == 3:
        return Text(size, variable=False, spaces=low & 15 == 2)
    if kind == 5 and size == 2:
        return np.dtype("V2")
    if kind == 8 and size == 1:  # h5py's bool: an enumeration over a byte
        return np.dtype("bool") if parse_type(data[8:]) == np.dtype("i1") else np.dtype("u1")
    if kind == 9 and low & 15 == 1 and size == 16:
        return Text(16, variable=True)
    if kind > 11:
        raise Damaged("an array's type is unknown")
    raise Unusual(f"elements of class {kind} with {size:,} bytes")


def parse_fill(data: bytes) -> bytes:
    """The value of what was never written; empty for zero."""
    if len(data) >= 8 and data[0] in (1, 2) and (data[3] or data[0] == 1):
        return data[8 : 8 + _U32.unpack_from(data, 4)[0]]
    if len(data) >= 6 and data[0] == 3 and data[1] & 32:
        return data[6 : 6 + _U32.unpack_from(data, 2)[0]]
    return b""


def parse_filters(data: bytes) -> list[tuple[int, tuple[int, ...]]]:
    version, count = unpack(struct.Struct("<BB"), data)
    if version == 2:
        raise Unusual("a filter pipeline of version 2")
    if version != 1 or count > 32:
        raise Damaged("filters are unknown")
    filters, at = [], 8
    for _ in range(count):
        kind, name, _, values = unpack(struct.Struct("<HHHH"), data, at)
        if kind not in (DEFLATE, SHUFFLE, FLETCHER32):
            raise Unusual(f"filter {kind}")
        at += 8 + -(-name // 8) * 8
        filters.append((kind, unpack(struct.Struct(f"<{values}I"), data, at)))
        at += 4 * (values + values % 2)
    return filters


def parse_attribute(data: bytes) -> tuple[str, tuple[np.dtype | Text, tuple[int, ...], bytes]]:
    version, flags, name_size, type_size, space_size = unpack(struct.Struct("<BBHHH"), data)
    if version not in (1, 2, 3):
        raise Damaged("an attribute is of no known version")
    if version > 1 and flags & 3:
        raise Unusual("attributes of shared types")
    at, parts = 9 if version == 3 else 8, []
    for size in (name_size, type_size, space_size):
        parts.append(data[at : at + size])
        if len(parts[-1]) != size:
            raise Damaged("an attribute is cut off")
        at += -(-size // 8) * 8 if version == 1 else size
    try:
        name = parts[0].split(b"\0", 1)[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged("an attribute's name is not UTF-8") from error
    kind, shape = parse_type(parts[1]), parse_space(parts[2])
    size = math.prod(shape) * kind.itemsize
    if at + size > len(data):
        raise Damaged(f"the attribute {name!r:.60} is cut off")
    return name, (kind, shape, data[at : at + size])
