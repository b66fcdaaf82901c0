"""What compression still owes, for checkpoints: by parameter and of all ranks, so that fewer or more ranks can go on from it.

`rest NAME` (ranks, values) is what each rank has not sent yet, `sum NAME` (values,) what rounding has left of the sums, and
`bucket_bytes` () the size of buckets, since what is sent depends on what travels together. Without compression there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...errors import CheckpointError
from .communicator import Communicator

if TYPE_CHECKING:
    from .reducer import Bucket, Reducer

Residual = dict[str, np.ndarray]


def collect(reducer: Reducer) -> Residual:
    """The residual of all ranks, on all of them; every rank has to ask for it."""
    found: Residual = {}
    for bucket in reducer.buckets:
        for kind, own in bucket.codec.residual().items():
            everyone = _gather(reducer.comm, own, f"the residual of {bucket.label}")
            if kind == "sum":  # a part from each rank
                everyone = everyone.reshape(-1)
            found |= {f"{kind} {name}": everyone[..., start:stop].copy()
                      for name, (start, stop, _) in bucket.places.items()}  # fmt: skip
    return found | {"bucket_bytes": np.asarray(reducer.bucket_bytes)} if found else {}


def _gather(comm: Communicator, own: np.ndarray, what: str) -> np.ndarray:
    everyone = np.empty((comm.size, own.size), own.dtype)
    comm.wait(comm.start_gather(own, everyone), what)
    return everyone


def bucket_bytes(residual: Residual) -> int | None:
    """The size of buckets that it was made with; None if there is no residual."""
    kept = residual.get("bucket_bytes")
    if kept is not None and (kept.shape != () or kept.dtype.kind not in "iu" or kept < 1):
        raise CheckpointError(f"the checkpoint's bucket_bytes is {kept!r}, expected a positive integer; it is damaged")
    return None if kept is None else int(kept)


def hand_out(comm: Communicator, residual: Residual) -> Residual:
    """Rank 0's residual, on all ranks."""
    listing = [[name, list(a.shape), a.dtype.str] for name, a in residual.items()] if comm.rank == 0 else []
    found: Residual = {}
    for name, shape, dtype in comm.gather(listing, "the list of residuals")[0]:
        found[name] = np.ascontiguousarray(residual[name]) if comm.rank == 0 else np.empty(shape, dtype)
        comm.broadcast(found[name].reshape(-1), f"{name} of the residual")
    return found


def restore(bucket: Bucket, residual: Residual, comm: Communicator) -> None:
    """Give a bucket's codec what it owes. The ranks that are no more leave what they had not sent to those that are."""
    for kind, own in bucket.codec.residual().items():
        whole = np.zeros(-(-bucket.send.size // comm.size) * comm.size if kind == "sum" else own.size, own.dtype)
        for name, (start, stop, _) in bucket.places.items():
            kept = residual.get(f"{kind} {name}")
            if kept is None:
                continue  # it was frozen then
            if kept.ndim != (1 if kind == "sum" else 2) or kept.shape[-1] != stop - start:
                raise CheckpointError(f"the checkpoint's {kind!r} of compression for {name} has shape {kept.shape}, expected "
                                      f"{stop - start} values; it is of another network")  # fmt: skip
            whole[start:stop] = kept if kind == "sum" else kept[comm.rank :: comm.size].sum(axis=0)
        own[...] = whole.reshape(comm.size, -1)[comm.rank] if kind == "sum" else whole
