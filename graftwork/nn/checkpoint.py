"""Checkpoints: model, optimiser, schedule, random state and progress in one HDF5 file, written atomically."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, WeightsError
from . import packing
from .files import atomic_path

FORMAT = 1
BOMB_BYTES, BOMB_RATIO = 4 << 30, 1000  # no honest array is that large and stored that small


def save(path: str | Path, arrays: dict[str, dict[str, np.ndarray]], info: dict[str, Any], packed: Sequence[str] = ()) -> None:
    """Write groups of named arrays and a JSON-able `info`; the file appears whole or not at all.

    packed: groups whose arrays are packed together (`packing.py`): exact, and small where weights were pruned, clustered or
    rounded.
    """
    import h5py

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["graftwork_checkpoint"] = FORMAT
        file.attrs["info"] = json.dumps(info)
        for group, entries in arrays.items():
            target = file.create_group(group)
            if group in packed:
                target.attrs["packed"] = packing.FORMAT
                packing.write_streams(target, packing.pack(entries))
                continue
            for name, value in entries.items():
                target.create_dataset(name.replace("/", "|"), data=value)


def load(path: str | Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Read what `save` wrote. Raises CheckpointError for a missing, damaged or foreign file."""
    import h5py

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no file at {path}; check the path")
    try:
        with h5py.File(path, "r") as file:
            version = int(file.attrs.get("graftwork_checkpoint", 0))
            if version == 0:
                raise CheckpointError(f"{path} is an HDF5 file but no checkpoint of Graftwork")
            if version > FORMAT:
                raise CheckpointError(f"{path} has checkpoint format {version}, this version reads up to {FORMAT}; upgrade")
            arrays = {group: _read_group(path, _linked(path, file, group)) for group in file}
            info = json.loads(file.attrs["info"])
            if not isinstance(info, dict):
                raise CheckpointError(f"{path}: its attribute `info` is a {type(info).__name__}, expected an object; damaged")
            return arrays, info
    except CheckpointError:
        raise
    except WeightsError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({error}); is it damaged or truncated?") from error


def _linked(path: Path, group: Any, name: str) -> Any:
    """A member of a group, if it is really in it: links to elsewhere, to another file above all, are refused."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise CheckpointError(f"{path}: {name!r} is a soft or external link; refused, save the checkpoint again")
    return group[name]


def _read_group(path: Path, group: Any) -> dict[str, np.ndarray]:
    """All arrays of a group by name, each once its declared size is known to be sensible."""
    if "packed" in group.attrs:
        if int(group.attrs["packed"]) > packing.FORMAT:
            version = group.attrs["packed"]
            raise CheckpointError(f"{path} is packed in a format that this version does not know ({version}); upgrade")
        return packing.unpack(packing.read_streams(lambda name: _checked(path, group, name), group))
    return {name.replace("|", "/"): _checked(path, group, name) for name in group}


def _checked(path: Path, group: Any, name: str) -> np.ndarray:
    data = _linked(path, group, name)
    stored = data.id.get_storage_size()
    if data.external or data.is_virtual or (data.nbytes > BOMB_BYTES and data.nbytes > BOMB_RATIO * stored):
        raise CheckpointError(f"{path}: {name!r} declares {data.nbytes:,} bytes and stores {stored:,} of them; refused")
    return data[()]
