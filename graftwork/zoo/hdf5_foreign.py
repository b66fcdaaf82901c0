"""HDF5 files that `hdf5_format` does not read, rewritten in the classic format by a child process.

The HDF5 library does the work, and may crash, loop or ask for all memory on a damaged file: the child has little memory and
time, and whatever becomes of it is an error that names the file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from .hdf5_format import ATTRIBUTE_CEILING, DEFLATE_RATIO, DEPTH_CEILING, FREE_BYTES

SECONDS, BYTES_PER_SECOND = 4, 50 << 20  # of processor time: a fixed part, and one for large files
OBJECT_CEILING = 1_000_000
# What h5py and the HDF5 library raise on damaged files.
DAMAGE = (OSError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError, AttributeError)


@contextlib.contextmanager
def rewritten(source: str | Path | bytes, name: str) -> Iterator[Path]:
    """A copy of a file in the classic format, for as long as the block lasts. Raises WeightsError naming `name`."""
    with tempfile.TemporaryDirectory(prefix="graftwork-") as folder:
        path = Path(folder, "foreign.h5") if isinstance(source, bytes) else Path(source)
        if isinstance(source, bytes):
            path.write_bytes(source)
        plain = Path(folder, "plain.h5")
        _run(path, plain, name)
        yield plain


def _run(path: Path, plain: Path, name: str) -> None:
    size = path.stat().st_size
    seconds = SECONDS + size // BYTES_PER_SECOND
    # the package's own folder first, so that the child runs this very code
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "graftwork.zoo.hdf5_foreign", str(path.resolve()), str(plain), name, str(seconds)]

    def problem(what: str) -> WeightsError:
        return WeightsError(
            f"{name} cannot be read ({size:,} bytes; the HDF5 library {what}); it is damaged: copy or download it again"
        )

    try:
        child = subprocess.run(command, capture_output=True, env=environment, timeout=60 + 10 * seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise problem(f"did not finish in {60 + 10 * seconds} s") from error
    try:
        answer = json.loads(child.stdout)
    except ValueError as error:
        raise problem(f"stopped with status {child.returncode}") from error
    if answer["error"]:
        raise WeightsError(answer["error"])


def main(path: str, plain: str, name: str, seconds: str) -> None:
    """What the child does: limits first, then the copy; its answer is a line of JSON."""
    import h5py

    size = os.path.getsize(path)
    _limit(size, int(seconds))
    answer: str | None = None
    try:
        with h5py.File(path, "r") as source, h5py.File(plain, "w") as target:
            _Copy(name, size).group(source, target, 0)
    except WeightsError as error:
        answer = str(error)
    except DAMAGE as error:
        reason = str(error).strip("'\" ") or type(error).__name__
        answer = f"{name} cannot be read ({size:,} bytes; {reason}); it is damaged or truncated: copy or download it again"
    print(json.dumps({"error": answer}))


def _limit(size: int, seconds: int) -> None:
    """Memory for what an honest file of this size holds, and processor time; no core file."""
    try:
        import resource
    except ImportError:  # Windows has no such limits; the parent's clock remains
        return
    statm = Path("/proc/self/statm")
    used = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 1 << 30
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20) + 4 * size + FREE_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _Copy:
    """Copies groups, attributes and arrays of numbers; refuses links that lead elsewhere, and bombs."""

    def __init__(self, name: str, size: int):
        self.name, self.size, self.total, self.count = name, size, 0, 0
        self.seen: set[int] = set()

    def refuse(self, what: str) -> None:
        raise WeightsError(f"{self.name}: {what}")

    def group(self, source: Any, target: Any, depth: int) -> None:
        import h5py

        self.count += 1
        address = h5py.h5o.get_info(source.id).addr
        if depth > DEPTH_CEILING or address in self.seen or self.count > OBJECT_CEILING:
            self.refuse("its groups contain each other or are absurdly many; it is damaged")
        self.seen.add(address)
        self.attributes(source, target)
        for key in source:
            if source.id.links.get_info(key.encode()).type != h5py.h5l.TYPE_HARD:
                self.refuse(f"{key!r} in {source.name} is a soft or external link; refused, save the weights as plain datasets")
            found = source[key]
            # names as plain bytes: what is marked as UTF-8 would make the copy a file of the newer format
            if isinstance(found, h5py.Group):
                self.group(found, h5py.Group(h5py.h5g.create(target.id, key.encode())), depth + 1)
            elif isinstance(found, h5py.Dataset):
                h5py.h5o.link(self.dataset(found, target).id, target.id, key.encode())

    def attributes(self, source: Any, target: Any) -> None:
        for key in source.attrs:
            declared = source.attrs.get_id(key)
            if math.prod(declared.shape) * declared.dtype.itemsize > ATTRIBUTE_CEILING:
                self.refuse(f"attribute {key!r} of {source.name} claims an absurd size; refused")
            target.attrs[key] = source.attrs[key]

    def dataset(self, data: Any, target: Any) -> Any:
        """A copy in the target's file that has no name yet."""
        where = f"{data.name!r}"
        if data.external or data.is_virtual:
            self.refuse(f"{where} takes its values from other files; refused, save the weights as plain datasets")
        if data.shape is None or data.dtype.kind not in "fiubV" or data.dtype.fields:
            self.refuse(f"{where} holds {data.dtype}, expected an array of numbers")
        declared, stored = math.prod(data.shape) * data.dtype.itemsize, data.id.get_storage_size()
        self.total += declared
        if declared > FREE_BYTES and declared > DEFLATE_RATIO * stored:
            self.refuse(f"{where} declares {data.shape}, {declared:,} bytes, and stores {stored:,}; refused")
        if self.total > FREE_BYTES and self.total > DEFLATE_RATIO * self.size:
            self.refuse(f"it declares {self.total:,} bytes of tensors and has {self.size:,}; refused")
        copy = target.create_dataset(None, data=data[()])
        self.attributes(data, copy)
        return copy


if __name__ == "__main__":
    main(*sys.argv[1:])
