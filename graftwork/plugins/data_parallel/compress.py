"""Gradients in fewer bytes, with error feedback (Seide et al. 2014; Karimireddy et al. 2019): what one step rounds away is
added to the next one's gradient. Every rank decodes the same numbers in the same order, so ranks stay bitwise equal.

A codec takes what this rank contributes and fills the sum over all ranks; `start` returns a request whose `test` also carries
it on from phase to phase. `residual` is what the next step adds: "rest", one value for each of the buffer's, and "sum", for
this rank's part of it; both may be written. Codecs are for CPU arrays.
"""

from __future__ import annotations

import numpy as np

from ...errors import ConfigError
from .communicator import Communicator, Request


class Exact:
    """No compression."""

    def __init__(self, comm: Communicator, size: int):
        self.comm = comm

    def start(self, send: np.ndarray, receive: np.ndarray) -> Request:
        return self.comm.start_sum(send, receive)

    def residual(self) -> dict[str, np.ndarray]:
        return {}


class Rounded:
    """16 bits a value ("fp16" or "bf16"). Each rank adds up one part of the buffer in 32 bits and hands out the rounded sum,
    so a value is sent twice in 16 bits, as an all-reduce sends it twice in 32."""

    def __init__(self, comm: Communicator, size: int, kind: str):
        self.comm, self.size = comm, size
        self.encode, self.decode = (_to_half, _from_half) if kind == "fp16" else (_to_bfloat, _from_bfloat)
        self.part = -(-size // comm.size)
        self.rest = np.zeros(self.part * comm.size, np.float32)  # what the last step rounded away here
        self.rest_of_sum = np.zeros(self.part, np.float32)  # and of the part that this rank adds up

    def start(self, send: np.ndarray, receive: np.ndarray) -> Request:
        self.rest[: self.size] += send
        codes = self.encode(self.rest)
        self.rest -= self.decode(codes)
        self.receive, self.codes, self.parts = receive, codes, np.empty((self.comm.size, self.part), np.uint16)
        self.request, self.added = self.comm.start_exchange(codes, self.parts), False
        return self

    def test(self) -> bool:
        if not self.request.test():
            return False
        if self.added:
            self.receive[...] = self.decode(self.all)[: self.size]
            return True
        for codes in self.parts:
            self.rest_of_sum += self.decode(codes)
        self.codes = self.encode(self.rest_of_sum)
        self.rest_of_sum -= self.decode(self.codes)
        self.all, self.added = np.empty(self.part * self.comm.size, np.uint16), True
        self.request = self.comm.start_gather(self.codes, self.all)
        return False

    def residual(self) -> dict[str, np.ndarray]:
        return {"rest": self.rest[: self.size], "sum": self.rest_of_sum}


class TopK:
    """The share `ratio` of the values that is largest in magnitude, as positions and values (Aji and Heafield 2017)."""

    def __init__(self, comm: Communicator, size: int, ratio: float):
        self.comm, self.size = comm, size
        self.count = max(1, round(ratio * size))
        self.rest = np.zeros(size, np.float32)

    def start(self, send: np.ndarray, receive: np.ndarray) -> Request:
        self.rest += send
        chosen = np.sort(np.argpartition(-np.abs(self.rest), self.count - 1)[: self.count]).astype(np.uint32)
        self.message = np.concatenate([chosen, self.rest[chosen].view(np.uint32)])
        self.rest[chosen] = 0.0
        self.receive, self.all = receive, np.empty((self.comm.size, 2 * self.count), np.uint32)
        self.request = self.comm.start_gather(self.message, self.all)
        return self

    def test(self) -> bool:
        if not self.request.test():
            return False
        self.receive[...] = 0.0
        for row in self.all:
            self.receive[row[: self.count]] += row[self.count :].view(np.float32)
        return True

    def residual(self) -> dict[str, np.ndarray]:
        return {"rest": self.rest}


def _to_half(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinite, which the check of the sum reports
        return x.astype(np.float16).view(np.uint16)


def _from_half(codes: np.ndarray) -> np.ndarray:
    return codes.view(np.float16).astype(np.float32)


def _to_bfloat(x: np.ndarray) -> np.ndarray:
    """Round to nearest, ties to even: the upper half of a float32."""
    bits = x.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _from_bfloat(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(np.uint32) << 16).view(np.float32)


Codec = Exact | Rounded | TopK


def check(compression: str | float | None) -> None:
    """ConfigError for what names no codec."""
    ratio = isinstance(compression, float) and 0.0 < compression <= 1.0
    if compression not in (None, "fp16", "bf16") and not ratio:
        raise ConfigError(f"compression={compression!r}; expected None, 'fp16', 'bf16', or the share of values to send (0.01)")


def codec(compression: str | float | None, comm: Communicator, size: int, dtype: np.dtype) -> Codec:
    """What `compression` names; whatever is no float32 goes as it is."""
    if compression is None or dtype != np.float32 or comm.size == 1:
        return Exact(comm, size)
    return Rounded(comm, size, compression) if isinstance(compression, str) else TopK(comm, size, compression)
