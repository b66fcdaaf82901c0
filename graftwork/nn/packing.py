"""Arrays in few bytes, exactly: what pruning, clustering and rounding have made simple is stored as simple as it is.

Each array takes the shortest form that gives back its very values:

- "int8": whole multiples, -127 to 127, of one scale an output channel (the last axis): the scales, and a byte an element;
- "codebook": at most 256 different values: these, and a byte an element (Han et al. 2016, "Deep Compression");
- "half": values that float16 can hold; "byte": arrays of bytes; "raw": anything else.

Arrays with many zeros store only what is not zero, and the gaps between. The bytes of all arrays together
make four streams, which HDF5's gzip brings near their entropy.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import WeightsError

FORMAT = 1
STREAMS = {"codes": np.uint8, "gaps": np.uint8, "floats": np.float32, "bytes": np.uint8}
SPARSE = 0.4  # share of zeros from which gaps are shorter than zeros; between, gzip makes both alike
LARGEST_CODEBOOK = 256
CHUNK, LEVEL = 1 << 18, 9  # elements that gzip takes at once, and how hard it tries
_BOMB_BYTES, _BOMB_RATIO = 4 << 30, 1000  # no honest file holds that much and stores that little


def pack(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The streams "index", "codes", "gaps", "floats" and "bytes" that `unpack` makes the same arrays of, value by value (zeros
    lose their sign)."""
    streams: dict[str, list[np.ndarray]] = {name: [] for name in STREAMS}
    index = []
    for name, array in arrays.items():
        entry, parts = _pack(np.asarray(array))
        index.append({"name": name, **entry})
        for stream, part in parts.items():
            streams[stream].append(part)
    packed = {name: _joined(streams[name], kind) for name, kind in STREAMS.items()}
    return {"index": np.frombuffer(json.dumps(index).encode(), np.uint8), **packed}


def _joined(parts: list[np.ndarray], kind: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, kind), *parts])


def _pack(array: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    entry: dict[str, Any] = {"shape": list(array.shape), "dtype": array.dtype.name}
    flat = np.ascontiguousarray(array).ravel()
    if array.dtype in (np.int8, np.uint8):
        form, parts = "byte", {"codes": flat.view(np.uint8)}
    elif array.dtype == np.float32:
        form, parts = _values(array, flat)
    else:
        return _counted({**entry, "form": "raw"}, {"bytes": flat.view(np.uint8)})
    if array.size and np.count_nonzero(flat) <= (1 - SPARSE) * flat.size:
        there, stream = np.flatnonzero(flat), "floats" if form == "raw" else "codes"
        if form == "half":
            form, stream, parts = "raw", "floats", {"floats": flat}
        parts = {**parts, stream: parts[stream][there], "gaps": _gaps(there, flat.size)}
    return _counted({**entry, "form": form}, parts)


def _counted(entry: dict[str, Any], parts: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return entry | {name: len(part) for name, part in parts.items()}, parts


def _values(array: np.ndarray, flat: np.ndarray) -> tuple[str, dict[str, np.ndarray]]:
    """The shortest form of float32 values, and its streams, an element a value."""
    coded = (_multiples(array) or _codebook(flat)) if array.size else None
    if coded is not None:
        return coded[0], {"codes": coded[1], "floats": coded[2]}
    with np.errstate(over="ignore"):
        half = flat.astype(np.float16)
    if np.array_equal(half.astype(np.float32), flat):
        return "half", {"bytes": half.view(np.uint8)}
    return "raw", {"floats": flat}


def _codebook(flat: np.ndarray) -> tuple[str, np.ndarray, np.ndarray] | None:
    """(form, codes, values in ascending order) of an array with few different values, where that is shorter."""
    if flat.size > 4 * LARGEST_CODEBOOK and len(np.unique(flat[: 4 * LARGEST_CODEBOOK])) > LARGEST_CODEBOOK:
        return None  # seen without sorting all of it
    values, codes = np.unique(flat, return_inverse=True)
    if len(values) > LARGEST_CODEBOOK or 4 * len(values) + flat.size > 2 * flat.size or np.isnan(values).any():
        return None
    return "codebook", codes.astype(np.uint8), values


def _multiples(array: np.ndarray) -> tuple[str, np.ndarray, np.ndarray] | None:
    """(form, codes, scales) of an array whose channels are whole multiples of a scale, -127 to 127; None for any other.

    The largest value must be 127 times the scale. As it was rounded, the quotient may be the scale's neighbour.
    """
    if array.ndim < 2 or array.size < 16 * array.shape[-1]:
        return None
    rows = array.reshape(-1, array.shape[-1])
    largest = np.abs(rows).max(axis=0)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    if not np.isfinite(largest).all() or not scale.all():
        return None
    sample = rows[:64]
    codes = np.rint(sample / scale)
    if not np.allclose(codes * scale, sample, rtol=1e-5, atol=0):
        return None  # the usual case, found without looking at all of it
    codes = np.rint(rows / scale).astype(np.float32)
    found = np.zeros(len(scale), bool)
    for candidate in (scale, np.nextafter(scale, np.float32(0)), np.nextafter(scale, np.float32(np.inf))):
        exact = (codes * candidate == rows).all(axis=0)
        scale = np.where(exact & ~found, candidate, scale)
        found |= exact
    if not found.all():
        return None
    return "int8", codes.astype(np.int8).ravel().view(np.uint8), scale


def _gaps(there: np.ndarray, size: int) -> np.ndarray:
    """Zeros before each value and after the last one, as bytes; 255 stands for 255 zeros that are followed by no value yet."""
    counts = np.diff(np.concatenate([[-1], there, [size]])) - 1
    whole, rest = np.divmod(counts, 255)
    out = np.full(int(whole.sum()) + len(counts), 255, np.uint8)
    out[np.cumsum(whole + 1) - 1] = rest
    return out


def _places(gaps: np.ndarray, count: int, size: int) -> np.ndarray:
    """What `_gaps` was made of. WeightsError where it does not fit."""
    ends = np.flatnonzero(gaps != 255)
    if len(ends) != count + 1 or ends[-1] != len(gaps) - 1:
        raise WeightsError("a packed array's gaps do not fit its values; the file is damaged")
    along = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(count + 1)
    if along[-1] != size:
        raise WeightsError("a packed array's gaps do not fit its size; the file is damaged")
    return along[:-1]


class Packed:
    """One array that is still packed: `shape` and `dtype` are known, `read` gives the values."""

    def __init__(self, entry: dict[str, Any], parts: dict[str, np.ndarray]):
        self.name, self.form = str(entry["name"]), str(entry["form"])
        self.shape = tuple(entry["shape"])
        self.dtype = np.dtype(entry["dtype"])
        self.stored = sum(p.nbytes for p in parts.values())
        self._parts, self._sparse = parts, "gaps" in entry

    packed = True  # values pass through something that may find them damaged

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def stored_dtype(self) -> str:
        """What the values are stored as, such as "sparse codebook"."""
        return f"{'sparse ' if self._sparse else ''}{self.dtype if self.form in ('raw', 'byte') else self.form}"

    def read(self, out: np.ndarray | None = None) -> np.ndarray:
        """The values; into `out`, an array of this shape, if given. Raises WeightsError if they do not fit the shape."""
        if out is None:
            return self._read()
        out[...] = self._read()
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the values are still packed; reading them makes a new array")
        values = self._read()
        return values if dtype is None else values.astype(dtype, copy=False)

    def _read(self) -> np.ndarray:
        size = self.size
        codes, floats = self._parts.get("codes"), self._parts.get("floats")
        if self._sparse and self.form == "raw" and floats is not None:
            return self._spread(floats, _places(self._parts["gaps"], len(floats), size), size)
        if self.form in ("raw", "half"):
            kind = np.dtype(np.float16) if self.form == "half" else self.dtype
            given = self._parts.get("bytes", np.zeros(0, np.uint8))
            stored = given[: len(given) // kind.itemsize * kind.itemsize].view(kind) if floats is None else floats
            return self._shaped(stored.astype(self.dtype), size)
        if self.form == "byte" and codes is not None and self.dtype.itemsize == 1:
            places = _places(self._parts["gaps"], len(codes), size) if self._sparse else None
            return self._spread(codes.view(self.dtype), places, size)
        if codes is None or floats is None or self.form not in ("codebook", "int8"):
            raise WeightsError(f"packed array {self.name!r} has the unknown form {self.form!r}; upgrade, or save it again")
        places = _places(self._parts["gaps"], len(codes), size) if self._sparse else None
        if self.form == "codebook":
            if len(codes) and int(codes.max()) >= len(floats):
                raise WeightsError(f"packed array {self.name!r} has codes beyond its codebook; the file is damaged")
            return self._spread(floats[codes], places, size)
        if len(self.shape) < 1 or self.shape[-1] != len(floats):
            raise WeightsError(f"packed array {self.name!r} has {len(floats)} scales for {self.shape}; the file is damaged")
        whole = self._spread(codes.view(np.int8).astype(np.float32), places, size)
        return whole * floats

    def _spread(self, values: np.ndarray, places: np.ndarray | None, size: int) -> np.ndarray:
        if places is None:
            return self._shaped(values.astype(self.dtype), size)
        whole = np.zeros(size, self.dtype)
        whole[places] = values
        return whole.reshape(self.shape)

    def _shaped(self, values: np.ndarray, size: int) -> np.ndarray:
        if values.size != size:
            raise WeightsError(f"packed array {self.name!r} stores {values.size} values for {self.shape}; the file is damaged")
        return values.reshape(self.shape)


def entries(streams: Mapping[str, np.ndarray]) -> dict[str, Packed]:
    """The packed arrays by name, each still packed. Raises WeightsError for streams that do not belong together."""
    try:
        index = json.loads(bytes(streams["index"]))
        found, at = {}, dict.fromkeys(STREAMS, 0)
        for entry in index:
            parts = {}
            for name in STREAMS:
                if name in entry:
                    count = int(entry[name])
                    parts[name] = streams[name][at[name] : at[name] + count]
                    if count < 0 or len(parts[name]) != count:
                        raise WeightsError(f"packed array {entry['name']!r} is cut off; the file is damaged")
                    at[name] += count
            if not all(isinstance(n, int) and n >= 0 for n in entry["shape"]) or entry["dtype"] not in _DTYPES:
                raise WeightsError(f"packed array {entry['name']!r} is {entry['dtype']}{entry['shape']}; the file is damaged")
            found[str(entry["name"])] = Packed(entry, parts)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"the index of packed arrays cannot be read ({error}); the file is damaged") from error
    declared = sum(math.prod(p.shape) * p.dtype.itemsize for p in found.values())
    stored = sum(np.asarray(s).nbytes for s in streams.values())
    if declared > _BOMB_BYTES and declared > _BOMB_RATIO * stored:
        raise WeightsError(f"packed arrays declare {declared:,} bytes and store {stored:,}; refused")
    return found


_DTYPES = frozenset(
    ("float16", "float32", "float64", "bool", *(f"{s}int{n}" for s in ("", "u") for n in (8, 16, 32, 64)))
)  # fmt: skip


def unpack(streams: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All arrays that `pack` was given."""
    return {name: packed.read() for name, packed in entries(streams).items()}


def write_streams(group: Any, streams: Mapping[str, np.ndarray]) -> None:
    """Streams as datasets of an open HDF5 group, behind its filters shuffle and gzip.

    Codes hardly repeat in longer pieces: Huffman's code alone is then shorter (and quicker) than what gzip makes of their
    matches, and the filter reads it all the same. So chunks are compressed here, in the way that is shorter for the first.
    """
    for name, stream in streams.items():
        if not stream.size:
            continue
        length = min(len(stream), CHUNK)
        data = group.create_dataset(
            name, stream.shape, stream.dtype, chunks=(length,), compression="gzip", compression_opts=LEVEL, shuffle=True
        )
        ways: tuple[int, ...] = _STRATEGIES
        for start in range(0, len(stream), length):
            chunk = np.zeros(length, stream.dtype)
            part = stream[start : start + length]
            chunk[: len(part)] = part
            planes = np.ascontiguousarray(chunk.view(np.uint8).reshape(length, -1).T)  # what the filter shuffle does
            packed = {way: _deflated(planes, way) for way in ways}
            ways = (min(ways, key=lambda way: len(packed[way])),)
            data.id.write_direct_chunk((start,), packed[ways[0]])


_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)


def _deflated(data: np.ndarray, strategy: int) -> bytes:
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return packer.compress(data.tobytes()) + packer.flush()


def read_streams(read: Any, names: Any) -> dict[str, np.ndarray]:
    """What `write_streams` wrote; read(name) gives a dataset's values. Raises WeightsError for other types."""
    found = {name: np.zeros(0, kind) for name, kind in {"index": np.uint8, **STREAMS}.items()}
    for name in found:
        if name in names:
            values = np.asarray(read(name))
            if values.ndim != 1 or values.dtype != found[name].dtype:
                raise WeightsError(f"packed stream {name!r} is {values.dtype}{list(values.shape)}; the file is damaged")
            found[name] = values
    return found


__all__ = ["Packed", "entries", "pack", "read_streams", "unpack", "write_streams"]
