"""What the plugin's saved models share: one HDF5 file with a kind, a version and named arrays; nothing in it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError, WeightsError
from ...nn.checkpoint import load as load_arrays
from ...nn.checkpoint import save as save_arrays

FORMAT = 2  # 2: any classifier of heads.py; 1 had logistic regression alone


def save_parts(path: str | Path, kind: str, arrays: dict[str, dict[str, np.ndarray]], info: dict[str, Any],
               packed: Sequence[str] = ()) -> None:  # fmt: skip
    """Write groups of arrays and JSON-able settings; the file appears whole or not at all. packed: groups to pack."""
    save_arrays(path, arrays, {"kind": kind, "format": FORMAT, **info}, packed)


def load_parts(
    path: str | Path, kind: str, arrays: dict[str, tuple[str, ...]], info: tuple[str, ...] = (), writer: str | None = None
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Read what `save_parts` wrote, if it is of this kind, not newer than this version, and has the arrays and settings named.

    writer: what makes such files, for the errors. Raises CheckpointError for a file that cannot be read or is newer,
    WeightsError for one of another kind or with parts missing.
    """
    what = kind.removeprefix("graftwork-").replace("-", " ")
    writer = writer or "its save()"
    try:
        found, settings = load_arrays(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; a saved {what} is written by {writer}") from error
    if settings.get("kind") != kind:
        raise WeightsError(f"{path} is not a saved {what}; make one with {writer}")
    version = settings.get("format", 1)
    if not isinstance(version, int) or version > FORMAT:
        raise CheckpointError(
            f"{path} has format {version} of a saved {what}, this version reads up to {FORMAT}; upgrade graftwork, or save "
            "it again with this version"
        )
    lacking = [f"{g}/{n}" for g, names in arrays.items() for n in ("", *names) if g not in found or (n and n not in found[g])]
    lacking += [name for name in info if name not in settings]
    if lacking:
        raise WeightsError(f"{path} is damaged: it lacks {', '.join(lacking)}; write it again with {writer}")
    return found, settings
