"""How long a data-parallel step takes on machines that are not here: latency, bandwidth, buckets, overlap.

The model of a message is a + n / b seconds (latency a, bandwidth b), that of an all-reduce of n bytes over p workers follows
from its algorithm (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH", 2005).
Compute comes from the ops' own cost rules and a measured rate, or from measured times. Buckets start when their last gradient
is complete and the one before them is through; what does not end before the backward pass does is exposed. Not in the model:
full switches, stragglers, input pipelines, compute that slows down while the network is busy. So it is a bound from below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError

ALGORITHMS = ("ring", "tree", "halving", "best")


@dataclass(frozen=True)
class Network:
    """latency: seconds of a message without contents. bandwidth: bytes a second of one worker's link, each way.

    adding: bytes a second at which a worker adds up what arrives. share: workers that share the link (one host's).
    """

    latency: float
    bandwidth: float
    adding: float = math.inf
    share: int = 1

    def __post_init__(self) -> None:
        if self.latency < 0 or not (self.bandwidth > 0 and self.adding > 0) or self.share < 1:
            raise ConfigError(f"{self}; expected latency of 0 or more, and positive bandwidth, adding and share")


@dataclass(frozen=True)
class Layer:
    """Gradients that are complete at one time: bytes, and seconds of the backward pass that they take."""

    gradient_bytes: int
    backward: float


@dataclass(frozen=True)
class Step:
    """A predicted step. efficiency: compute / seconds, which is images a second over `workers` times what one computes."""

    workers: int
    seconds: float
    compute: float
    communication: float
    buckets: int

    @property
    def exposed(self) -> float:
        """Seconds that communication takes after the backward pass has ended."""
        return self.seconds - self.compute

    @property
    def efficiency(self) -> float:
        return self.compute / self.seconds


def all_reduce(nbytes: float, workers: int, network: Network, algorithm: str = "best") -> float:
    """Seconds to add up `nbytes` over `workers`, the result on all.

    ring: reduce-scatter and all-gather around a ring, 2 (p - 1) messages of n / p. tree: up and down a binomial tree, 2 log2 p
    messages of n. halving: recursive halving and doubling, 2 log2 p messages, 2 n (p - 1) / p bytes. best: the fastest of them.
    """
    if workers < 1 or nbytes < 0:
        raise ConfigError(f"all_reduce: {nbytes} bytes over {workers} workers; expected 0 or more, and 1 or more")
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"all_reduce: algorithm={algorithm!r}; expected one of {', '.join(ALGORITHMS)}")
    if workers == 1:
        return 0.0
    rounds, part = math.ceil(math.log2(workers)), (workers - 1) / workers
    moved, added = nbytes / network.bandwidth, nbytes / network.adding
    times = {
        "ring": 2 * (workers - 1) * network.latency + part * (2 * moved + added),
        "tree": rounds * (2 * network.latency + network.share * (2 * moved) + added),
        # partners lie far apart, so the workers of a host contend for its link
        "halving": 2 * rounds * network.latency + part * (network.share * 2 * moved + added),
    }
    return min(times.values()) if algorithm == "best" else times[algorithm]


def fill(layers: Sequence[Layer], bucket_bytes: int) -> list[tuple[int, float]]:
    """(bytes, seconds after the backward pass began when the last gradient is complete) of each bucket; layers in its order."""
    buckets, size, clock = [], 0, 0.0
    for layer in layers:
        clock += layer.backward
        size += layer.gradient_bytes
        if size >= bucket_bytes:
            buckets.append((size, clock))
            size = 0
    return [*buckets, (size, clock)] if size else buckets


def step(layers: Sequence[Layer], forward: float, workers: int, network: Network, bucket_bytes: int = 25 << 20,
         overlap: bool = True, algorithm: str = "best", update: float = 0.0) -> Step:  # fmt: skip
    """Predict one step of `workers` that each compute the same batch.

    layers: in the order of the backward pass (the network's last layer first). forward, update: seconds. overlap=False: all
    buckets start after the backward pass.
    """
    if not layers:
        raise ConfigError("step: no layers given, expected at least one")
    if bucket_bytes < 1:
        raise ConfigError(f"step: bucket_bytes={bucket_bytes}; expected 1 or more")
    backward = sum(layer.backward for layer in layers)
    buckets = fill(layers, bucket_bytes)
    end = communication = 0.0
    for size, ready in buckets:
        seconds = all_reduce(size, workers, network, algorithm)
        end = max(end, ready if overlap else backward) + seconds
        communication += seconds
    compute = forward + backward + update
    return Step(workers, compute + max(0.0, end - backward), compute, communication, len(buckets))


def best_bucket(layers: Sequence[Layer], forward: float, workers: int, network: Network) -> int:
    """The bucket size, a power of two from 64 KiB to 256 MiB, with the shortest predicted step."""
    return min((1 << i for i in range(16, 29)), key=lambda size: step(layers, forward, workers, network, size).seconds)


def fit(sizes: Sequence[int], seconds: Sequence[float], workers: int) -> Network:
    """Latency and bandwidth of a network from measured all-reduces (ring), by relative least squares. Sizes in bytes."""
    if len(sizes) != len(seconds) or len(set(sizes)) < 2 or workers < 2 or min(seconds) <= 0:
        raise ConfigError(f"fit: {len(sizes)} sizes, {len(seconds)} times, {workers} workers; expected two different sizes or "
                          "more, a positive time for each, and 2 workers or more")  # fmt: skip
    import numpy as np

    steps, part = 2 * (workers - 1), 2 * (workers - 1) / workers
    weights = 1.0 / np.asarray(seconds)
    columns = np.stack([np.full(len(sizes), steps), part * np.asarray(sizes, float)], 1) * weights[:, None]
    latency, per_byte = np.linalg.lstsq(columns, np.ones(len(sizes)), rcond=None)[0]
    return Network(max(float(latency), 0.0), 1.0 / max(float(per_byte), 1e-15))


def layers_of(model, input_shape: Sequence[int], batch: int, rate: float) -> tuple[list[Layer], float]:
    """(layers in the order of the backward pass, seconds of the forward pass) of a network, from its ops' cost rules.

    input_shape: without the batch. rate: floating-point operations a second of one worker, a multiplication and an addition
    counted as two. The backward pass of an op with weights is counted twice its forward pass, that of any other once.
    """
    import numpy as np

    from ...nn import tensor
    from ...nn.autograd import no_grad
    from ...nn.compile import trace

    if batch < 1 or not rate > 0:
        raise ConfigError(f"layers_of: batch={batch}, rate={rate}; both must be positive")
    with no_grad():
        graph = trace(model, tensor(np.zeros((1, *input_shape), np.float32)))
    trained = {id(p): p.data.nbytes for p in model.parameters() if p.requires_grad}
    layers, forward = [], 0.0
    for node in graph.nodes:
        flops = node.flops * batch
        forward += flops / rate
        own = sum(trained.pop(id(graph.states.get(v)), 0) for v in node.inputs)
        layers.append(Layer(own, (2 if own else 1) * flops / rate))
    return layers[::-1], forward
