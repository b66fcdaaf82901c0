"""Checkpoints: model, optimiser, schedule, random state and progress in one HDF5 file, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from .files import atomic_path

FORMAT = 1


def save(path: str | Path, arrays: dict[str, dict[str, np.ndarray]], info: dict[str, Any]) -> None:
    """Write groups of named arrays and a JSON-able `info`; the file appears whole or not at all."""
    import h5py

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["graftwork_checkpoint"] = FORMAT
        file.attrs["info"] = json.dumps(info)
        for group, entries in arrays.items():
            target = file.create_group(group)
            for name, value in entries.items():
                target.create_dataset(name.replace("/", "|"), data=value)


def load(path: str | Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Read what `save` wrote. Raises CheckpointError for a missing, damaged or foreign file."""
    import h5py

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; expected a file written by nn.checkpoint.save")
    try:
        with h5py.File(path, "r") as file:
            version = int(file.attrs.get("graftwork_checkpoint", 0))
            if version == 0:
                raise CheckpointError(f"{path} is an HDF5 file but not a Graftwork checkpoint")
            if version > FORMAT:
                raise CheckpointError(f"{path} has checkpoint format {version}, this version reads up to {FORMAT}; upgrade")
            arrays = {
                group: {name.replace("|", "/"): data[()] for name, data in file[group].items()} for group in file
            }
            return arrays, json.loads(file.attrs["info"])
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({error}); is it damaged or truncated?") from error
