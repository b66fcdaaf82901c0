"""Reading HDF5 files of the classic format without the HDF5 library.

The library is C code that trusts what stands in a file: flipped bits make it crash, loop or take all memory. A weights file is
data from a stranger, so the part of the format that Keras and h5py write is read here, in Python, with every address and size
checked first. What the specification allows beyond that (groups with dense storage, other filters, files of libver="latest")
raises `Unusual`, and `hdf5_foreign` has a child process rewrite the file.

Source: HDF5 File Format Specification, version 3.0 (superblock 0, object header 1, B-tree 1, data layout 3).
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WeightsError
from .hdf5_messages import (
    DEFLATE,
    SHUFFLE,
    Damaged,
    Text,
    Unusual,
    parse_attribute,
    parse_fill,
    parse_filters,
    parse_space,
    parse_type,
    unpack,
)

SIGNATURE = b"\x89HDF\r\n\x1a\n"
UNDEFINED = (1 << 64) - 1  # the address of what has no storage
PAGE = 1 << 13  # bytes read at once where metadata is
DEFLATE_RATIO = 1100  # deflate never reaches 1033
FREE_BYTES = 64 << 20  # what a file of any size may declare without storing it
ATTRIBUTE_CEILING = 1 << 26  # bytes; no honest file has more in one attribute
BLOCK_CEILING, DEPTH_CEILING = 1000, 64

_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_PREFIX, _MESSAGE, _PAIR = struct.Struct("<BxHII"), struct.Struct("<HHB3x"), struct.Struct("<QQ")
_ENTRY, _NODE = struct.Struct("<QQI4xI12x"), struct.Struct("<4sBBHQQ")
_HEAP_ENTRY, _REFERENCE = struct.Struct("<HH4xQ"), struct.Struct("<IQI")


def _pread(fd: int, count: int, at: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, count, at)
    os.lseek(fd, at, os.SEEK_SET)  # Windows
    return os.read(fd, count)


def _pread_into(fd: int, out: memoryview, at: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [out], at)
    data = _pread(fd, min(len(out), 1 << 24), at)
    out[: len(data)] = data
    return len(data)


class Reader:
    """An HDF5 file, or its bytes, open for reading. `root` is its first group."""

    def __init__(self, source: str | Path | bytes, name: str | None = None):
        self._fd = -1
        self.name = name or (str(source) if not isinstance(source, bytes) else "these bytes")
        self._pages: dict[int, bytes] = {}
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}
        self._objects: dict[int, Any] = {}
        if isinstance(source, bytes):
            self._bytes: bytes | None = source
            self.size = len(source)
        else:
            self._bytes, self._fd = None, os.open(source, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self.size = os.fstat(self._fd).st_size

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    def damaged(self, reason: object) -> WeightsError:
        return WeightsError(
            f"{self.name} cannot be read ({self.size:,} bytes; {reason}); it is damaged or truncated: copy or download it again"
        )

    # -- bytes -------------------------------------------------------------------------------------------------------

    def read(self, at: int, count: int) -> bytes:
        """`count` bytes of metadata at an address; Damaged if the file does not reach that far."""
        if at < 0 or count < 0 or at + count > self.size:
            raise Damaged(f"something is said to stand at {at:,}, {count:,} bytes long")
        if self._bytes is not None:
            return self._bytes[at : at + count]
        page, start = divmod(at, PAGE)
        if start + count <= PAGE:
            if page not in self._pages:
                self._pages[page] = _pread(self._fd, PAGE, page * PAGE)
            found = self._pages[page][start : start + count]
        else:
            found = _pread(self._fd, count, at)
        if len(found) != count:
            raise Damaged("the file has become shorter while it was read")
        return found

    def read_into(self, at: int, out: memoryview) -> None:
        """Fill a byte view from an address; in pieces, since a system call may stop early."""
        if at < 0 or at + len(out) > self.size:
            raise Damaged(f"values are said to stand at {at:,}, {len(out):,} bytes long")
        if self._bytes is not None:
            out[:] = self._bytes[at : at + len(out)]
            return
        done = 0
        while done < len(out):
            count = _pread_into(self._fd, out[done:], at + done)
            if count == 0:
                raise Damaged("the file has become shorter while it was read")
            done += count

    # -- objects -----------------------------------------------------------------------------------------------------

    def open(self) -> Group:
        """The root group, once the superblock is known to be of the classic format and the file is whole."""
        start = self.read(0, min(96, self.size))
        if len(start) < 96 or start[:8] != SIGNATURE:
            raise Damaged("the superblock is cut off")
        version = start[8]
        if version in (1, 2, 3):
            raise Unusual(f"superblock of version {version}")
        if version or start[9] or start[10] or start[12] or tuple(start[13:15]) != (8, 8):
            raise Damaged("the superblock is of no known version")
        base, _, end, driver = struct.unpack_from("<QQQQ", start, 24)
        if base or driver != UNDEFINED:
            raise Unusual("a base address or a driver of its own")
        if end > self.size:
            raise Damaged(f"it should have {end:,} bytes")
        root = self.object(_U64.unpack_from(start, 64)[0], "/")
        if not isinstance(root, Group):
            raise Damaged("its root is no group")
        return root

    def object(self, address: int, name: str) -> Group | Dataset:
        """The group or dataset whose header stands at an address."""
        found = self._objects.get(address)
        if found is None:
            messages = self._messages(address)
            kinds = {kind for kind, _ in messages}
            if 0x0011 in kinds:
                found = Group(self, name, messages)
            elif 0x0008 in kinds:
                found = Dataset(self, name, messages)
            elif kinds & {0x0002, 0x0006, 0x000A}:
                raise Unusual("a group of the newer format")
            else:
                raise Damaged(f"{name} is neither a group nor a dataset")
            self._objects[address] = found
        return found

    def _messages(self, address: int) -> list[tuple[int, bytes]]:
        """The messages of an object header of version 1, as (type, content)."""
        head = self.read(address, 16)
        if head[:4] == b"OHDR":
            raise Unusual("an object header of version 2")
        version, count, _, size = _PREFIX.unpack_from(head)
        if version != 1 or not count:
            raise Damaged(f"there is no object header at {address:,}")
        blocks, messages, seen = [(address + 16, size)], [], 0
        for at, length in blocks:  # grows while continuations are found
            block, position = self.read(at, length), 0
            while position + 8 <= length and seen < count:
                kind, size, flags = _MESSAGE.unpack_from(block, position)
                content = block[position + 8 : position + 8 + size]
                if len(content) != size:
                    raise Damaged("a header message is longer than its header")
                position += 8 + size
                seen += 1
                if kind == 0x0010:
                    blocks.append(unpack(_PAIR, content))
                    if len(blocks) > BLOCK_CEILING:
                        raise Damaged("a header goes on for ever")
                elif kind:
                    if flags & 2 and kind in (0x0001, 0x0003, 0x0005, 0x0008, 0x000B, 0x000C):
                        raise Unusual("header messages that are shared")
                    messages.append((kind, content))
        if seen < count:
            raise Damaged("header messages are missing")
        return messages

    def heap_object(self, address: int, index: int) -> bytes:
        """An entry of a global heap, where strings of variable length are."""
        if address not in self._heaps:
            self._heaps[address] = self._parse_heap(address)
        if index not in self._heaps[address]:
            raise Damaged("a string points to nothing")
        return self.read(*self._heaps[address][index])

    def _parse_heap(self, address: int) -> dict[int, tuple[int, int]]:
        head = self.read(address, 16)
        size = _U64.unpack_from(head, 8)[0]
        if head[:5] != b"GCOL\x01" or address + size > self.size:
            raise Damaged("its heap of strings is inconsistent")
        entries, position, end = {}, address + 16, address + size
        while end - position >= 16:
            index, _, length = _HEAP_ENTRY.unpack(self.read(position, 16))
            if index == 0:  # the free space, which is the rest and counts its own header
                if length != end - position:
                    raise Damaged("its heap of strings is inconsistent")
                break
            if position + 16 + length > end:
                raise Damaged("its heap of strings is inconsistent")
            entries[index] = position + 16, length
            position += 16 + -(-length // 8) * 8
        return entries


class Object:
    """What groups and datasets share: a name, and attributes."""

    def __init__(self, reader: Reader, name: str, messages: list[tuple[int, bytes]]):
        self.reader, self.name = reader, name
        if any(kind == 0x0015 for kind, _ in messages):
            raise Unusual("attributes in dense storage")
        self._attributes = [content for kind, content in messages if kind == 0x000C]
        self._attrs: dict[str, tuple[np.dtype | Text, tuple[int, ...], bytes]] | None = None

    @property
    def attrs(self) -> dict[str, tuple[np.dtype | Text, tuple[int, ...], bytes]]:
        """(type, shape, bytes as stored) by name; `attribute` gives values."""
        if self._attrs is None:
            self._attrs = dict(map(parse_attribute, self._attributes))
        return self._attrs

    def attribute(self, name: str) -> Any:
        """An attribute's value: a list of bytes for texts (a single one for a scalar), else an array."""
        kind, shape, data = self.attrs[name]
        count = math.prod(shape)
        if isinstance(kind, np.dtype):
            return np.frombuffer(data, kind, count).reshape(shape)
        values = list(self._texts(kind, data, count))
        return values[0] if shape == () else values

    def _texts(self, kind: Text, data: bytes, count: int) -> Iterator[bytes]:
        total = 0
        for i in range(count):
            piece = data[i * kind.itemsize : (i + 1) * kind.itemsize]
            if kind.variable:
                length, address, index = _REFERENCE.unpack(piece)
                piece = self.reader.heap_object(address, index) if length else b""
                if len(piece) < length:
                    raise Damaged("a string is longer than its place in the heap")
                yield piece[:length]
                total += length
                if total > ATTRIBUTE_CEILING:
                    raise Damaged("an attribute claims an absurd size")
            else:
                yield piece.rstrip(b" ") if kind.spaces else piece.split(b"\0", 1)[0]


class Group(Object):
    """Names of objects. `links` maps them to addresses; None stands for a soft link."""

    def __init__(self, reader: Reader, name: str, messages: list[tuple[int, bytes]]):
        super().__init__(reader, name, messages)
        self._table = unpack(_PAIR, next(content for kind, content in messages if kind == 0x0011))
        self._links: dict[str, int | None] | None = None

    @property
    def links(self) -> dict[str, int | None]:
        if self._links is None:
            tree, heap = self._table
            head = self.reader.read(heap, 32)
            size, _, data = struct.unpack_from("<QQQ", head, 8)
            if head[:5] != b"HEAP\0":
                raise Damaged(f"the names in {self.name} are lost")
            names = self.reader.read(data, size)
            self._links = {}
            for entry in self._entries(tree):
                name, address = self._entry(entry, names)
                if name in self._links:
                    raise Damaged(f"{self.name} has two objects {name!r:.60}")
                self._links[name] = address
        return self._links

    @staticmethod
    def _entry(entry: bytes, names: bytes) -> tuple[str, int | None]:
        start, address, cached, _ = _ENTRY.unpack(entry)
        end = names.find(b"\0", start)
        if start >= len(names) or end < 0:
            raise Damaged("a name points to nothing")
        try:
            name = names[start:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged("a name is not UTF-8") from error
        if not name or "/" in name or cached > 2:
            raise Damaged(f"{name!r:.60} is no name of an object")
        return name, None if cached == 2 else address

    def _entries(self, tree: int) -> Iterator[bytes]:
        """The symbol table entries below a B-tree node, in order."""
        for node in _leaves(self.reader, tree, 0, 8):
            head = self.reader.read(node[1], 8)
            count = _U16.unpack_from(head, 6)[0]
            if head[:5] != b"SNOD\x01":
                raise Damaged(f"a node of {self.name} is lost")
            table = self.reader.read(node[1] + 8, 40 * count)
            yield from (table[i : i + 40] for i in range(0, len(table), 40))

    def child(self, name: str) -> Group | Dataset | None:
        """An object of this group, or None if there is none of that name. Damaged-free soft links raise WeightsError."""
        if name not in self.links:
            return None
        address = self.links[name]
        path = f"{self.name.rstrip('/')}/{name}"
        if address is None:
            raise WeightsError(
                f"{self.reader.name}: {path!r} is a soft or external link; refused, save the weights as plain datasets"
            )
        return self.reader.object(address, path)


class Dataset(Object):
    """An array in a file: `shape`, `dtype` (a NumPy dtype, or `Text`), `stored` bytes; `read` gives the values."""

    def __init__(self, reader: Reader, name: str, messages: list[tuple[int, bytes]]):
        super().__init__(reader, name, messages)
        first: dict[int, bytes] = {}
        for kind, content in messages:
            first.setdefault(kind, content)
        if 0x0007 in first:
            raise WeightsError(
                f"{reader.name}: {name!r} takes its values from other files; refused, save the weights as plain datasets"
            )
        if 0x0001 not in first or 0x0003 not in first:
            raise Damaged(f"{name} has no shape or no type")
        self.shape = parse_space(first[0x0001])
        self.dtype = parse_type(first[0x0003])
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self._fill = parse_fill(first.get(0x0005, b""))
        self._filters = parse_filters(first[0x000B]) if 0x000B in first else []
        self._chunks: list[tuple[tuple[int, ...], int, int, int]] = []
        self._inline = b""
        self._parse_layout(first[0x0008])

    def _parse_layout(self, content: bytes) -> None:
        if len(content) < 2:
            raise Damaged(f"{self.name} has no layout")
        version, kind = content[0], content[1]
        if version in (1, 2, 4, 5):
            raise Unusual(f"data layout of version {version}")
        if version != 3 or kind > 2:
            raise Damaged(f"{self.name} has an unknown layout")
        self.layout = ("compact", "contiguous", "chunked")[kind]
        self.address = UNDEFINED
        if kind == 0:
            self.stored = _U16.unpack_from(content, 2)[0] if len(content) >= 4 else -1
            self._inline = content[4 : 4 + self.stored]
            if self.stored != len(self._inline) or self.stored < self.nbytes:
                raise Damaged(f"{self.name} is cut off")
        elif kind == 1:
            self.address, size = unpack(_PAIR, content[2:18])
            self.stored = 0 if self.address == UNDEFINED else size
            if self.address != UNDEFINED and (size < self.nbytes or self.address + size > self.reader.size):
                raise Damaged(f"{self.name} is cut off")
        else:
            self._parse_chunked(content)

    def _parse_chunked(self, content: bytes) -> None:
        rank = content[2] - 1 if len(content) > 2 else -1
        if rank != len(self.shape) or rank < 1 or len(content) < 11 + 4 * (rank + 1):
            raise Damaged(f"the chunks of {self.name} do not fit its shape")
        self.address = _U64.unpack_from(content, 3)[0]
        *self.chunk_shape, element = struct.unpack_from(f"<{rank + 1}I", content, 11)
        if element != self.dtype.itemsize or 0 in self.chunk_shape:
            raise Damaged(f"the chunks of {self.name} do not fit its type")
        if math.prod(self.chunk_shape) * element >= 1 << 32:
            raise Damaged(f"the chunks of {self.name} are too large")
        if self.address != UNDEFINED:
            for key, address in _leaves(self.reader, self.address, 1, 16 + 8 * rank):
                size, mask, *offset, last = struct.unpack(f"<II{rank + 1}Q", key)
                aligned = all(o % c == 0 and o < n for o, c, n in zip(offset, self.chunk_shape, self.shape, strict=True))
                if not aligned or last or address + size > self.reader.size:
                    raise Damaged(f"a chunk of {self.name} lies outside")
                self._chunks.append((tuple(offset), address, size, mask))
            if len({chunk[0] for chunk in self._chunks}) < len(self._chunks):
                raise Damaged(f"a chunk of {self.name} is there twice")
        self.stored = sum(size for _, _, size, _ in self._chunks)
        chunk = math.prod(self.chunk_shape) * element
        if chunk > FREE_BYTES and chunk > DEFLATE_RATIO * max(self.stored, self.nbytes):
            raise Damaged(f"the chunks of {self.name} are absurdly large")

    # -- values ------------------------------------------------------------------------------------------------------

    @property
    def numbers(self) -> np.dtype:
        """`dtype`, if it is one of numbers."""
        if not isinstance(self.dtype, np.dtype):
            raise Damaged(f"{self.name} holds text, expected numbers")
        return self.dtype

    def read(self, out: np.ndarray | None = None) -> np.ndarray:
        """The values in native byte order; into `out` (same shape and dtype, C-contiguous) if it is given."""
        dtype = self.numbers
        target = np.empty(self.shape, dtype) if out is None or not dtype.isnative else out
        view: Any = memoryview(target.reshape(-1).view(np.uint8)) if target.size else memoryview(b"")  # type: ignore[arg-type]
        if self.layout == "chunked":
            self._read_chunks(target)
        elif self.layout == "compact":
            view[:] = self._inline[: self.nbytes]
        elif self.address == UNDEFINED:
            self._fill_in(target)
        elif target.size:
            self.reader.read_into(self.address, view)
        if not dtype.isnative:
            target = target.byteswap().view(dtype.newbyteorder("="))
            if out is not None:
                out[...] = target
                target = out
        return target

    def _fill_in(self, target: np.ndarray) -> None:
        if len(self._fill) == target.itemsize:
            target[...] = np.frombuffer(self._fill, self.numbers)[0]
        else:
            target[...] = np.zeros((), target.dtype)

    def _read_chunks(self, target: np.ndarray) -> None:
        full = math.prod(-(-n // c) for n, c in zip(self.shape, self.chunk_shape, strict=True))
        if len(self._chunks) < full:
            self._fill_in(target)
        size = math.prod(self.chunk_shape) * target.itemsize
        for offset, address, stored, mask in self._chunks:
            data = self._unfilter(self.reader.read(address, stored), size, mask)
            values = np.frombuffer(data, self.numbers, math.prod(self.chunk_shape)).reshape(self.chunk_shape)
            place = tuple(slice(o, min(o + c, n)) for o, c, n in zip(offset, self.chunk_shape, self.shape, strict=True))
            target[place] = values[tuple(slice(0, p.stop - p.start) for p in place)]

    def _unfilter(self, data: bytes, size: int, mask: int) -> bytes:
        """A chunk as it was before its filters; `size` bytes, or Damaged."""
        for i, (filter, values) in reversed(list(enumerate(self._filters))):
            if mask >> i & 1:
                continue
            if filter == DEFLATE:
                stream = zlib.decompressobj()
                try:
                    data = stream.decompress(data, size + 4)  # at most a checksum more
                except zlib.error as error:
                    raise Damaged(f"a chunk of {self.name} does not unpack: {error}") from error
            elif filter == SHUFFLE:
                item = values[0] if values else self.dtype.itemsize
                if not 0 < item <= 16 or len(data) % item:
                    raise Damaged(f"a chunk of {self.name} does not unpack")
                data = np.frombuffer(data, np.uint8).reshape(item, -1).T.tobytes()
            else:
                data = self._checked(data)
        if len(data) != size:
            raise Damaged(f"a chunk of {self.name} unpacks to {len(data):,} bytes, expected {size:,}")
        return data

    def _checked(self, data: bytes) -> bytes:
        """Fletcher's checksum of 32 bits, over big-endian words of 16, stands in the last four bytes."""
        if len(data) < 4:
            raise Damaged(f"a chunk of {self.name} is cut off")
        data, stored = data[:-4], _U32.unpack(data[-4:])[0]
        padded = data + b"\0" if len(data) % 2 else data
        words = np.frombuffer(padded, ">u2").astype(np.uint64)
        low, high = 0, 0
        for start in range(0, len(words), 1 << 20):  # sums stay below 64 bits
            part = words[start : start + (1 << 20)]
            high = (high + low * len(part) + int((part * np.arange(len(part), 0, -1, dtype=np.uint64)).sum())) % 65535
            low = (low + int(part.sum())) % 65535
        mine = {((high or h) << 16) | (low or m) for h in (0, 65535) for m in (0, 65535)}  # 0 and 65535 are the same remainder
        if stored not in mine:
            raise Damaged(f"a chunk of {self.name} fails its checksum")
        return data


def _leaves(reader: Reader, address: int, kind: int, key_size: int, level: int | None = None,
            seen: set[int] | None = None) -> Iterator[tuple[bytes, int]]:  # fmt: skip
    """(key, address) of all leaves of a B-tree of version 1, in order; each node is visited once, levels fall by one."""
    seen = set() if seen is None else seen
    signature, found, depth, count, _, _ = _NODE.unpack(reader.read(address, _NODE.size))
    if signature != b"TREE" or found != kind or address in seen or depth > DEPTH_CEILING or level not in (None, depth):
        raise Damaged("an index is inconsistent")
    seen.add(address)
    step = key_size + 8
    table = reader.read(address + _NODE.size, count * step)
    for i in range(0, count * step, step):
        key, child = table[i : i + key_size], _U64.unpack_from(table, i + key_size)[0]
        if depth:
            yield from _leaves(reader, child, kind, key_size, depth - 1, seen)
        elif child in seen:
            raise Damaged("an index is inconsistent")
        else:
            seen.add(child)
            yield key, child


def check_sizes(reader: Reader, datasets: list[Dataset]) -> None:
    """Refuse shape bombs before memory is taken: what is declared must be stored, at the best ratio that packing reaches.

    Bound: all arrays together take at most 64 MiB or 1100 times the file, whichever is more; arrays that are not packed take
    no more than the file.
    """
    total = stored = 0
    for data in datasets:
        total, stored = total + data.nbytes, stored + data.stored
        if data.nbytes > FREE_BYTES and data.nbytes > DEFLATE_RATIO * data.stored:
            raise WeightsError(
                f"{reader.name}: {data.name!r} declares {data.shape}, {data.nbytes:,} bytes, "
                f"and stores {data.stored:,}; refused"
            )
    if total > FREE_BYTES and total > DEFLATE_RATIO * reader.size:
        raise WeightsError(f"{reader.name} declares {total:,} bytes of tensors and has {reader.size:,}; refused")
    if stored > reader.size:
        raise WeightsError(f"{reader.name} declares {stored:,} stored bytes and has {reader.size:,}: tensors overlap; refused")
