"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError


def require_writable(path: str | os.PathLike) -> Path:
    """The path, if a file can be written there; DataError otherwise. Ask before long work, not after it."""
    path = Path(path)
    if not path.parent.is_dir():
        raise DataError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise DataError(f"cannot write {path}: it is a folder; name a file")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()  # permission bits say nothing to root or of a read-only disk
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; choose another folder or free some space") from error
    return path


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed onto it at the end, removed if anything goes wrong.

    Raises DataError if the folder does not exist or cannot be written to.
    """
    path = require_writable(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; choose another folder or free some space") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
