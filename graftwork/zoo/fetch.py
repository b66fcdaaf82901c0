"""Fetching published weights: looked for on this machine first, downloaded once, checked, and put in place whole.

`GRAFTWORK_WEIGHTS` is a folder with files that were put there by hand, or the URL of a mirror (its files have the names of the
published ones). Downloads are kept in the user's cache folder. A download that was cut goes on where it stopped; processes
that want the same file at once wait for the first one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .. import __version__
from ..errors import FetchError
from ..folders import cache_folder
from .registry import WeightsFile

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS, PAUSE = 5, 0.5  # tries without progress, and seconds before the second one; the pause doubles
BLOCK = 1 << 18  # bytes at once
NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if the server says so


def folder() -> Path:
    """Where downloads are kept."""
    return cache_folder("weights")


def local(file: WeightsFile) -> Path | None:
    """The file on this machine: in the folder that GRAFTWORK_WEIGHTS names, or in the cache; None if it is in neither."""
    own = os.environ.get("GRAFTWORK_WEIGHTS", "")
    places = [Path(own)] if own and "://" not in own else []
    return next((place / file.filename for place in [*places, folder()] if (place / file.filename).is_file()), None)


def url(file: WeightsFile) -> str:
    """Where the file is downloaded from: the mirror that GRAFTWORK_WEIGHTS names, or where it is published."""
    mirror = os.environ.get("GRAFTWORK_WEIGHTS", "")
    return f"{mirror.rstrip('/')}/{quote(file.filename)}" if "://" in mirror else file.source


def fetch(file: WeightsFile, progress: Progress | None = None) -> Path:
    """The path of a published file, downloaded if it is not on this machine.

    progress: called with the bytes so far and in all; by default a bar on the terminal. The hash is checked where one is
    known, before the file is put in place. Raises FetchError that says what to do: no network, a full disk, a cache that cannot
    be written to, a server's refusal, or content that is not what was published.
    """
    if (found := local(file)) is not None:
        return found
    target = folder() / file.filename
    with _writing(file, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_name(f"{target.name}.lock")):
            if target.is_file():  # another process was first
                return target
            with contextlib.nullcontext(progress) if progress else _bar(file) as report:
                _download(file, target, report)
    return target


def check_hash(path: Path, expected: str) -> str | None:
    """The hash of a file, "md5:..." or "sha256:...", if it is another one than expected; None if it is right."""
    algorithm, _, digits = expected.partition(":")
    with open(path, "rb") as content:
        found = hashlib.file_digest(content, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    return None if found == digits.lower() else f"{algorithm}:{found}"


# -- downloading ---------------------------------------------------------------------------------------------------------


def _download(file: WeightsFile, target: Path, report: Progress) -> None:
    """Into `target`.partial, which stays for the next time if the connection fails, then checked and renamed."""
    partial = target.with_name(f"{target.name}.partial")
    if file.hash is None:
        partial.unlink(missing_ok=True)  # nothing would tell whether its two halves belong together
    resumed = partial.exists()
    _transfer(file, partial, report)
    problem = file.hash and check_hash(partial, file.hash)
    if problem and resumed:  # the old part may have been of another version
        partial.unlink()
        _transfer(file, partial, report)
        problem = file.hash and check_hash(partial, file.hash)
    if problem:
        size = partial.stat().st_size
        partial.unlink()
        raise FetchError(
            f"{file.model}: {url(file)} gave {size:,} bytes with {problem}, expected {file.hash}; removed. It is not the "
            f"published file: try again, or put the right one at {target}"
        )
    with open(partial, "rb+") as content:
        os.fsync(content.fileno())
    os.replace(partial, target)


def _transfer(file: WeightsFile, partial: Path, report: Progress) -> None:
    """All bytes into `partial`, through as many connections as it takes; gives up after ATTEMPTS without progress."""
    failures, validator = 0, None
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            done, validator = _connection(file, partial, before, validator, report)
            if done:
                return
            reason: object = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # there is nothing after what we have, or it is of another file
                if file.hash and check_hash(partial, file.hash) is None:
                    return
                partial.unlink()
            elif error.code < 500 and error.code not in (408, 429):
                raise _problem(file, f"the server says {error.code} {error.reason}") from error
            reason = f"{error.code} {error.reason}"
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        after = partial.stat().st_size if partial.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures == ATTEMPTS:
            raise _problem(file, str(reason), after)
        if failures:
            time.sleep(PAUSE * 2 ** (failures - 1))


def _connection(file: WeightsFile, partial: Path, start: int, validator: str | None,
                report: Progress) -> tuple[bool, str | None]:  # fmt: skip
    """One request for what is missing. (whether that was all, what tells the server which version we have a part of)"""
    headers = {"User-Agent": f"graftwork/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    with urllib.request.urlopen(urllib.request.Request(url(file), headers=headers), timeout=TIMEOUT) as answer:
        begins = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if answer.status != 206:
            start = 0  # the server sends everything
        elif begins is None or int(begins[1]) != start:
            raise _problem(file, "the server sends another part of the file than was asked for")
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else None
        _require_room(file, partial, total, start)
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        done = start
        with open(partial, "ab" if start else "wb") as out:
            report(done, total)
            while block := _receive(answer):
                out.write(block)
                done += len(block)
                report(done, total)
    return total is None or done >= total, None if validator and validator.startswith("W/") else validator


def _receive(answer: Any) -> bytes:
    """The next bytes; what the network does to them is a ConnectionError, so that it is not taken for the disk's."""
    try:
        return answer.read(BLOCK)
    except OSError as error:
        raise ConnectionError(error.strerror or str(error)) from error


def _require_room(file: WeightsFile, partial: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if total is not None and total - start > free:
        raise FetchError(
            f"{file.model}: {file.filename} needs {total - start:,} bytes more and {partial.parent} has {free:,} free; free "
            "some space, or set GRAFTWORK_CACHE to a folder on another disk"
        )


def _problem(file: WeightsFile, reason: str, kept: int = 0) -> FetchError:
    part = f"; {kept:,} bytes are kept, the next try goes on from there" if kept and file.hash else ""
    return FetchError(
        f"{file.model}: {file.filename} could not be fetched from {url(file)} ({reason}){part}. Without a network, put the "
        f"file at {folder() / file.filename}, or set GRAFTWORK_WEIGHTS to the folder that has it or to the URL of a mirror"
    )


@contextlib.contextmanager
def _writing(file: WeightsFile, target: Path) -> Iterator[None]:
    """What the file system refuses, as a FetchError that says what to do."""
    try:
        yield
    except FetchError:
        raise
    except OSError as error:
        if error.errno in NO_ROOM:
            raise FetchError(
                f"{file.model}: no room for {file.filename} in {target.parent} ({error.strerror}); what was fetched is "
                "kept. Free some space and try again, or set GRAFTWORK_CACHE to a folder on another disk"
            ) from error
        raise FetchError(
            f"{file.model}: {target.parent} cannot be written to ({error.strerror or error}); set GRAFTWORK_CACHE to another "
            f"folder, or fetch {url(file)} yourself and set GRAFTWORK_WEIGHTS to the folder that has it"
        ) from error


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the system releases the lock of a process that dies."""
    with open(path, "a+b") as held:
        if sys.platform == "win32":
            import msvcrt

            held.seek(0)
            while True:  # LK_LOCK itself gives up after ten seconds
                with contextlib.suppress(OSError):
                    msvcrt.locking(held.fileno(), msvcrt.LK_LOCK, 1)
                    break
            try:
                yield
            finally:
                held.seek(0)
                msvcrt.locking(held.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(held, fcntl.LOCK_EX)
            yield  # closing releases it


@contextlib.contextmanager
def _bar(file: WeightsFile) -> Iterator[Progress]:
    """A progress bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                          TimeRemainingColumn()]  # fmt: skip
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        job = bar.add_task(file.filename, total=file.size)
        yield lambda done, total: bar.update(job, completed=done, total=total)
