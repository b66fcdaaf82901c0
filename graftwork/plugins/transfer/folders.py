"""Folders of pictures, one sub-folder a class, read with an eye for what spoils a measurement: duplicates, damage, loops."""

from __future__ import annotations

import hashlib
import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import DataError
from ...zoo import images


class FolderWarning(UserWarning):
    """Pictures that were left out, or that are more than once in the data."""


@dataclass(frozen=True)
class Folder:
    """Pictures and their classes.

    paths, labels: files and class numbers (n,). classes: names. groups: (n,) numbers that files of the same content share, for
    splits that keep them on one side. hashes: SHA-256 of each file. unreadable: files left out, with the reason of each.
    """

    paths: list[Path]
    labels: np.ndarray
    classes: list[str]
    groups: np.ndarray
    hashes: list[str] = field(repr=False)
    unreadable: dict[Path, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def duplicates(self) -> list[list[Path]]:
        """Files of the same content, in groups of two and more."""
        by_group: dict[int, list[Path]] = {}
        for path, group in zip(self.paths, self.groups.tolist(), strict=True):
            by_group.setdefault(group, []).append(path)
        return [paths for paths in by_group.values() if len(paths) > 1]

    def shared_with(self, other: Folder) -> list[tuple[Path, Path]]:
        """Files that `other` holds too, by content: (here, there). A FolderWarning names the first, for they spoil a test."""
        there = dict(zip(reversed(other.hashes), reversed(other.paths), strict=True))
        pairs = [(path, there[key]) for path, key in zip(self.paths, self.hashes, strict=True) if key in there]
        if pairs:
            warnings.warn(
                f"{len(pairs)} pictures are in both parts of the data, such as {pairs[0][0]} and {pairs[0][1]}; what is "
                "measured on them says nothing of new pictures: remove them from one part",
                FolderWarning,
                stacklevel=2,
            )
        return pairs


def load_folder(path: str | Path, check: bool = True, classes: list[str] | None = None) -> Folder:
    """The pictures below a folder with a sub-folder for each class.

    check: every file is decoded (JPEG at an eighth of its size, which is quick), and what cannot be read is left out, listed in
    `unreadable` and warned of. classes: the names and their order, as learned before; a folder beyond them is an error.
    Links to folders within a class are passed over, so loops end. Raises DataError for less than two classes, and for
    empty ones, also if only unreadable files are in them.
    """
    root = Path(path)
    _refuse_loops(root)
    paths, labels, names = images.list_labelled(root)
    if classes is not None:
        unknown = [n for n in names if n not in classes]
        if unknown:
            raise DataError(
                f"{root} has classes that were not in the training: {', '.join(unknown)}; it had {', '.join(classes)}"
            )
        labels, names = np.array([classes.index(names[i]) for i in labels]), list(classes)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda p: _examine(p, check), paths))
    unreadable = {p: reason for p, (_, reason) in zip(paths, found, strict=True) if reason}
    kept = [i for i, (_, reason) in enumerate(found) if not reason]
    emptied = [names[c] for c in np.unique(labels) if not (labels[kept] == c).any()]
    if unreadable:
        first = next(iter(unreadable))
        if emptied:
            raise DataError(f"{root}: no readable picture in {', '.join(emptied)}; {unreadable[first]}")
        warnings.warn(
            f"{len(unreadable)} of {len(paths)} files below {root} cannot be read and are left out, the first: "
            f"{unreadable[first]}",
            FolderWarning,
            stacklevel=2,
        )
    hashes = [found[i][0] for i in kept]
    numbers: dict[str, int] = {}
    groups = np.array([numbers.setdefault(key, len(numbers)) for key in hashes])
    _warn_of_contradictions(hashes, labels[kept], [paths[i] for i in kept], names)
    return Folder([paths[i] for i in kept], labels[kept], names, groups, hashes, unreadable)


def _refuse_loops(root: Path) -> None:
    """DataError for a class folder that is a link to the folder itself or to one above it."""
    if not root.is_dir():
        return
    whole = root.resolve()
    for entry in sorted(root.iterdir()):
        if entry.is_symlink() and entry.is_dir() and (entry.resolve() == whole or entry.resolve() in whole.parents):
            raise DataError(
                f"{entry} is a link to {entry.resolve()}, which holds it; a class is a folder of its own: remove the link"
            )


def _examine(path: Path, check: bool) -> tuple[str, str]:
    """(SHA-256 of a file, why it cannot be read or "")."""
    from PIL import Image, UnidentifiedImageError

    try:
        data = path.read_bytes()
    except OSError as error:
        return "", f"{path} cannot be read ({error.strerror or error})"
    if check:
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.format == "JPEG":
                    image.draft("RGB", (8, 8))  # decodes all of the file, but makes few pixels of it
                    image.load()
                else:
                    images.open_image(io.BytesIO(data), name=path)
        except UnidentifiedImageError:
            return "", f"{path} is no image of a known format"
        except (Image.DecompressionBombError, OSError, SyntaxError, ValueError, TypeError) as error:
            reason = str(error) if isinstance(error, DataError) else f"{path} cannot be read as an image ({error})"
            return "", reason
    return hashlib.sha256(data).hexdigest(), ""


def _warn_of_contradictions(hashes: list[str], labels: np.ndarray, paths: list[Path], names: list[str]) -> None:
    """A FolderWarning for files of the same content in different classes."""
    seen: dict[str, int] = {}
    for i, key in enumerate(hashes):
        j = seen.setdefault(key, i)
        if labels[i] != labels[j]:
            warnings.warn(
                f"{paths[j]} and {paths[i]} are the same picture, once as {names[labels[j]]} and once as {names[labels[i]]}; "
                "remove one of them",
                FolderWarning,
                stacklevel=3,
            )
            return
