"""Gradients summed over ranks while the backward pass goes on.

A `Reducer` is told of each gradient when it is complete (`autograd.mode.ready`). In the first backward pass it puts them into
buckets in that order, and all ranks compare notes; from then on a bucket that has all its gradients starts a non-blocking
all-reduce. Both halves are ops that write the bucket's buffer: eager calls run them, a captured step has them in its graph,
which is cut there because their kernels are Python. Afterwards gradients are views of the buffers.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import ConfigError, RankError, ShapeError
from ...kernels import registry
from ...nn import Tensor
from ...nn.autograd import Leaf, mode
from ...nn.op import Op
from .communicator import Communicator, Request, require_equal
from .compress import Codec, codec
from .residual import Residual, restore
from .timeline import Timeline

_reducers: weakref.WeakValueDictionary[int, Reducer] = weakref.WeakValueDictionary()


@dataclass
class Bucket:
    """Gradients that travel together: `send` is this rank's part, `receive` the sum; `places` are their slices by name."""

    number: int
    send: Any
    receive: Tensor
    places: dict[str, tuple[int, int, tuple[int, ...]]]
    codec: Codec
    ready: dict[str, Tensor] = field(default_factory=dict)
    request: Request | None = None

    @property
    def label(self) -> str:
        names = list(self.places)
        return f"bucket {self.number} ({names[0]} to {names[-1]})"

    def view(self, name: str) -> Tensor:
        start, stop, shape = self.places[name]
        return self.receive[start:stop].reshape(shape)


class Reducer:
    """Sums the gradients of `parameters` (by name), each rank's times `share`, in buckets of about `bucket_bytes`.

    share: a float tensor of shape (), read anew in every step. overlap=False starts all buckets after the backward pass.
    check: raise RankError for a sum that is not finite, naming the rank that it came from. residual: what compression owes from
    before (`residual.collect`).
    """

    def __init__(self, comm: Communicator, parameters: dict[str, Tensor], share: Tensor, bucket_bytes: int,
                 compression: str | float | None = None, overlap: bool = True, check: bool = True,
                 timeline: Timeline | None = None, residual: Residual | None = None):  # fmt: skip
        self.comm, self.parameters, self.share = comm, parameters, share
        self.bucket_bytes, self.compression, self.overlap, self.check = bucket_bytes, compression, overlap, check
        self.timeline, self.residual = timeline or Timeline(), residual or {}
        self.buckets: list[Bucket] = []
        self.planned = False
        self.key = id(self)
        _reducers[self.key] = self
        self._names = {id(p.edge): name for name, p in parameters.items() if type(p.edge) is Leaf}
        self._home: dict[str, Bucket] = {}
        self._open: dict[str, Tensor] = {}  # the bucket that is being filled, in the first pass
        self._closers: dict[str, int] = {}  # gradients whose arrival closes buckets, and how many are closed then
        self._due = 0  # buckets that are closed in this pass
        self._next = 0  # the bucket whose turn it is: all ranks start them in one order

    # -- during the backward pass ------------------------------------------------------------------------------------
    def ready(self, leaf: Leaf, gradient: Tensor) -> None:
        """A gradient is complete."""
        name = self._names.get(id(leaf))
        if name is None:
            return
        if not self.planned:
            self._collect(name, gradient)
        elif name not in self._home:
            raise RankError(f"{name} has a gradient in this step and had none in the first one; all ranks plan their buckets "
                            "in the first step, so use every parameter there, or freeze it")  # fmt: skip
        else:
            self._home[name].ready[name] = gradient
            self._due = self._closers.get(name, self._due)
        if self.overlap:
            self._start_complete(self._due)

    def _collect(self, name: str, gradient: Tensor) -> None:
        """A bucket closes with the gradient that fills it, or at the first of another type. From then on each pass starts it
        there, so that a step is the same graph whenever it is captured. What is left at the end closes in `finish`."""
        if self._open and gradient.dtype != next(iter(self._open.values())).dtype:
            self._close()
        self._open[name] = gradient
        if sum(g.size * g.dtype.itemsize for g in self._open.values()) >= self.bucket_bytes:
            self._close()
        if len(self.buckets) > self._due:
            self._due = self._closers[name] = len(self.buckets)

    def _close(self) -> None:
        """Make a bucket of what has been collected, once all ranks have said that they collected the same."""
        gradients, self._open = self._open, {}
        number, listing = len(self.buckets), [f"{n} {g.dtype}{list(g.shape)}" for n, g in gradients.items()]
        found = _untraced(lambda: self.comm.gather(listing, f"the plan of bucket {number}"))
        require_equal(self.comm, found, f"gradients of bucket {number}", "all ranks must compute the same network")
        first = next(iter(gradients.values()))
        places, size = {}, 0
        for name, g in gradients.items():
            places[name] = size, size + g.size, g.shape
            size += g.size
        module = np if first.device == "cpu" else __import__("cupy")
        send, receive = module.zeros(size, first.dtype), Tensor(module.zeros(size, first.dtype))
        if module is not np and self.compression is not None:
            raise ConfigError(f"compression={self.compression!r} is for models on the CPU; pass compression=None on a GPU")
        coder = codec(self.compression, self.comm, size, first.dtype)
        bucket = Bucket(number, send, receive, places, coder, dict(gradients))
        restore(bucket, self.residual, self.comm)
        self.buckets.append(bucket)
        self._home.update(dict.fromkeys(places, bucket))

    def _start_complete(self, stop: int) -> None:
        while self._next < stop and len(self.buckets[self._next].ready) == len(self.buckets[self._next].places):
            self._start(self.buckets[self._next])

    def _start(self, bucket: Bucket) -> None:
        gradients = [bucket.ready[name] for name in bucket.places]
        bucket.ready.clear()
        self._next += 1
        BUCKET_START(bucket.receive, self.share, *gradients, reducer=self.key, bucket=bucket.number)

    # -- after it ----------------------------------------------------------------------------------------------------
    def finish(self) -> None:
        """Wait for all sums and make them the parameters' gradients. A parameter that took part in the first step and has no
        gradient now counts as zero on this rank."""
        if not self.planned and self._open:
            self._close()
        if not self.planned:
            counts = _untraced(lambda: self.comm.gather(len(self.buckets), "the end of the plan"))
            require_equal(self.comm, counts, "number of buckets", "all ranks must compute the same network")
        self.planned = True
        for bucket in self.buckets[self._next :]:
            for name in bucket.places:
                if name not in bucket.ready:
                    bucket.ready[name] = Tensor(bucket.view(name).data * 0)
            self._start(bucket)
        self._next = self._due = 0
        for bucket in self.buckets:
            BUCKET_FINISH(bucket.receive, reducer=self.key, bucket=bucket.number)
            for name in bucket.places:
                self.parameters[name].grad = bucket.view(name)

    # -- what the ops do -----------------------------------------------------------------------------------------------
    def start_now(self, number: int, share: Any, gradients: tuple) -> None:
        bucket = self.buckets[number]
        began = time.perf_counter()
        factor = bucket.send.dtype.type(share) if isinstance(share, np.ndarray) else share.astype(bucket.send.dtype)
        for (start, stop, shape), g in zip(bucket.places.values(), gradients, strict=True):
            _scaled(g, factor, bucket.send[start:stop].reshape(shape))
        self.comm.at(tensor=next(iter(bucket.places)))
        bucket.request = bucket.codec.start(bucket.send, bucket.receive.data)
        for other in self.buckets[:number]:  # MPI moves data only when it is asked
            if other.request is not None and other.request.test():
                self._done(other)
        self.timeline.add(f"fill bucket {number}", "fill", began, time.perf_counter())
        self.timeline.begin(number)

    def finish_now(self, number: int) -> None:
        bucket = self.buckets[number]
        if bucket.request is not None:
            began = time.perf_counter()
            self.comm.wait(bucket.request, bucket.label)
            self.timeline.add(f"wait for bucket {number}", "wait", began, time.perf_counter())
            self._done(bucket)
        if self.check and not math.isfinite(float(bucket.receive.data.sum())):
            self._blame(bucket)

    def _done(self, bucket: Bucket) -> None:
        bucket.request = None
        self.timeline.end(bucket.number, 2 * bucket.send.nbytes)

    def _blame(self, bucket: Bucket) -> None:
        """The sum is the same on all ranks, so all of them come here and say which of theirs was not finite."""
        own = [n for n, (a, b, _) in bucket.places.items() if not math.isfinite(float(bucket.send[a:b].sum()))]
        found = self.comm.gather(own, f"the search for what is not finite in {bucket.label}")
        guilty = "; ".join(f"{self.comm.describe(r)}: {', '.join(names[:5])}" for r, names in enumerate(found) if names)
        step = self.comm.where.get("step", 0)
        source = guilty or "the sum itself, which overflowed"
        raise RankError(f"step {step}: gradients are not finite (NaN or infinite), from {source}; look at that rank's data, or "
                        "lower the learning rate")  # fmt: skip


def _scaled(g: Any, factor: Any, out: Any) -> None:
    if isinstance(out, np.ndarray):
        np.multiply(g, factor, out=out)
    else:
        out[...] = g * factor


def _untraced(call: Callable[[], Any]) -> Any:
    """Talk to other ranks in the middle of a capture: on a thread that is in none."""
    if mode.trace is None:
        return call()
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised again below, in the thread that asked
            errors.append(error)

    thread = threading.Thread(target=run, name="graftwork-plan")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _start_infer(receive, share, *gradients, reducer, bucket):
    size = sum(math.prod(g.shape) for g in gradients)
    if receive.shape != (size,):
        raise ShapeError(f"bucket_start: {size} values for a buffer of shape {tuple(receive.shape)}; they must be equal")


def _start_kernel(receive, share, *gradients, out, reducer, bucket):
    _reducers[reducer].start_now(bucket, share, gradients)


def _finish_kernel(receive, *, out, reducer, bucket):
    _reducers[reducer].finish_now(bucket)


BUCKET_START = Op("bucket_start", infer=_start_infer, writes=(0,))
BUCKET_FINISH = Op("bucket_finish", infer=lambda receive, reducer, bucket: None, writes=(0,))
for _device in ("cpu", "cuda"):
    registry.register("bucket_start", _device, "collective", _start_kernel)
    registry.register("bucket_finish", _device, "collective", _finish_kernel)


def measure_bucket_bytes(comm: Communicator, total: int, repeats: int = 5) -> int:
    """The bucket size that a cost model recommends, measured here and now: rank 0's, on all ranks.

    An all-reduce of s bytes takes a + s / b. With n buckets of total / n bytes, starting them costs n a, and the last one,
    which nothing hides, total / (n b): the sum is least where s = sqrt(total a b). Between 64 KiB and 32 MiB.
    """
    times = []
    for size in (256, 1 << 18):
        send, receive = np.zeros(size, np.float32), np.empty(size, np.float32)
        spent = []
        for _ in range(repeats):
            start = time.perf_counter()
            comm.wait(comm.start_sum(send, receive), "the measurement of bandwidth")
            spent.append(time.perf_counter() - start)
        times.append(min(spent))
    latency = times[0]
    rate = 4 * ((1 << 18) - 256) / max(times[1] - times[0], 1e-7)
    best = int(min(max(math.sqrt(max(total, 1) * latency * rate), 1 << 16), 1 << 25))
    return comm.gather(best, "the size of buckets")[0]
