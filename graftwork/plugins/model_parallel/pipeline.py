"""Running the stages of a network on several ranks: micro-batches follow one another through them.

GPipe (Huang et al. 2019): all forward passes, then all backward passes. 1F1B (Narayanan et al., "PipeDream", 2019, in the
flushed form of Megatron-LM): as soon as the pipe is full one backward pass follows each forward pass. Both wait equally long,
(stages - 1) / (micro-batches + stages - 1) of the step if stages cost the same, and give the same gradients; 1F1B keeps the
activations of at most `stages` micro-batches instead of all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ConfigError, ShapeError
from ...nn import Tensor, tensor
from ...nn.autograd import backward, no_grad
from .mesh import Mesh, sum_gradients
from .stages import Stage

SCHEDULES = ("1f1b", "gpipe")


@dataclass(frozen=True)
class Report:
    """What a rank holds and how long it idles.

    parameter_bytes: of this stage; gradients take as much again, and so does each value that the optimiser keeps.
    activation_bytes: most micro-batches in flight times what the stage's ops put out for one (an upper bound of what the tape
    keeps). bubble: share of the step that stages of equal cost would wait. waited: the share that this rank did in the last
    step, None before one. imbalance: the dearest stage's cost over the mean.
    """

    stage: int
    parameter_bytes: int
    activation_bytes: int
    in_flight: int
    bubble: float
    waited: float | None
    imbalance: float


def order(schedule: str, stage: int, stages: int, micro_batches: int) -> Iterator[tuple[str, int]]:
    """What a stage does in a step: ("forward" or "backward", micro-batch), in order."""
    ahead = micro_batches if schedule == "gpipe" else min(micro_batches, stages - stage - 1)
    for i in range(ahead):
        yield "forward", i
    for i in range(micro_batches - ahead):
        yield "forward", ahead + i
        yield "backward", i
    for i in range(micro_batches - ahead, micro_batches):
        yield "backward", i


class Pipeline:
    """One rank's stage of a network and its place in the pipe.

    Made by `split_pipeline`. `parameters()` are this stage's, for the optimiser; `step` is forward and backward of a batch;
    `predict` forward only. A network with batch norm in training mode normalises each micro-batch by itself.
    """

    def __init__(self, stages: Sequence[Stage], mesh: Mesh, micro_batches: int, schedule: str = "1f1b"):
        if schedule not in SCHEDULES:
            raise ConfigError(f"Pipeline: schedule={schedule!r}; expected one of {', '.join(SCHEDULES)}")
        if micro_batches < 1:
            raise ConfigError(f"Pipeline: micro_batches={micro_batches}; expected 1 or more")
        self.mesh, self.micro_batches, self.schedule = mesh, micro_batches, schedule
        self.stage = stages[mesh.stage]
        costs = [s.cost for s in stages]
        self.imbalance = max(costs) * len(costs) / sum(costs) if sum(costs) else 1.0
        self._first, self._last = mesh.stage == 0, mesh.stage == len(stages) - 1
        self._waited: float | None = None
        self._idle = 0.0
        self._peak = 0

    def parameters(self) -> Iterator[Tensor]:
        """The parameters of this stage."""
        return iter(self.stage.parameters.values())

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters of this stage with their paths in the whole network."""
        return iter(self.stage.parameters.items())

    def step(self, inputs: np.ndarray | Tensor, targets: np.ndarray | Tensor,
             loss: Callable[[Tensor, Tensor], Tensor]) -> float:  # fmt: skip
        """Forward and backward of one batch; gradients collect in the parameters, averaged over the copies of a mesh.

        inputs, targets: this copy's batch, (batch, ...), on every rank (the first stage reads the one, the last the other).
        loss(output, targets): the mean over a micro-batch. Returns the mean loss of the batch over all copies, on every rank.
        Raises ConfigError if the micro-batches do not divide the batch, ShapeError for one of another size than the example.
        """
        started = time.perf_counter()
        self._idle, self._peak = 0.0, 0
        xs, ts = self._divide(inputs), self._divide(targets)
        kept: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        total = 0.0
        for what, i in order(self.schedule, self.mesh.stage, self.mesh.pipeline.size, self.micro_batches):
            if what == "forward":
                taken = self._take(xs[i], i)
                made = self.stage(taken)
                if self._last:
                    made = [loss(made[0], tensor(ts[i])) / float(self.micro_batches)]
                    total += made[0].item()
                else:
                    self._hand_on(made, i)
                kept[i] = taken, made
                self._peak = max(self._peak, len(kept))
            else:
                self._backward(*kept.pop(i), i)
        self._flush()
        sum_gradients(self.parameters(), self.mesh.data)
        self._waited = self._idle / (time.perf_counter() - started)
        return self._share_loss(total)

    def predict(self, inputs: np.ndarray | Tensor) -> np.ndarray | None:
        """The network's output for a batch, on the ranks of the last stage; None on the others."""
        found = []
        with no_grad():
            for i, x in enumerate(self._divide(inputs)):
                made = self.stage(self._take(x, i, gradients=False))
                if self._last:
                    found.append(made[0].numpy())
                else:
                    self._hand_on(made, i)
        self._flush()
        return np.concatenate(found) if self._last else None

    def report(self) -> Report:
        """Memory and waiting of this rank."""
        stages, many = self.mesh.pipeline.size, self.micro_batches
        in_flight = many if self.schedule == "gpipe" else min(many, stages - self.mesh.stage)
        return Report(
            self.mesh.stage, self.stage.parameter_bytes, in_flight * self.stage.activation_bytes, self._peak or in_flight,
            (stages - 1) / (many + stages - 1), self._waited, self.imbalance,
        )  # fmt: skip

    # -- one micro-batch -----------------------------------------------------------------------------------------------
    def _divide(self, batch: np.ndarray | Tensor) -> list[np.ndarray]:
        array = batch.numpy() if isinstance(batch, Tensor) else np.asarray(batch)
        if len(array) % self.micro_batches or not len(array):
            raise ConfigError(
                f"Pipeline: micro_batches={self.micro_batches} do not divide a batch of {len(array)}; give a batch that is a "
                "multiple (leave out or fill up the last one of an epoch)"
            )
        return np.split(array, self.micro_batches)

    def _take(self, x: np.ndarray, number: int, gradients: bool = True) -> list[Tensor]:
        """What the stage computes from: the batch, or what the stage before sent."""
        if self._first:
            expected = self.stage.inputs[0].shape
            if x.shape != expected:
                raise ShapeError(f"Pipeline: a micro-batch of shape {x.shape}; the stages were made for {expected}")
            return [tensor(x)]
        taken = []
        for j, value in enumerate(self.stage.inputs):
            array = self._receive(value, self.mesh.stage - 1, _tag(number, j, False), f"the input of micro-batch {number}")
            taken.append(tensor(array, requires_grad=gradients and value.dtype.kind == "f"))
        return taken

    def _hand_on(self, made: list[Tensor], number: int) -> None:
        for j, t in enumerate(made):
            self._send(t.numpy(), self.mesh.stage + 1, _tag(number, j, False))

    def _backward(self, taken: list[Tensor], made: list[Tensor], number: int) -> None:
        """Take the gradients of the outputs, hand on those of the inputs."""
        grads: list[Tensor | None]
        if self._last:
            grads = [tensor(np.ones((), made[0].dtype))]
        else:
            grads = [
                Tensor(self._receive(v, self.mesh.stage + 1, _tag(number, j, True), f"the gradient of micro-batch {number}"))
                if v.dtype.kind == "f" else None
                for j, v in enumerate(self.stage.outputs)
            ]  # fmt: skip
        pairs = [(y, g) for y, g in zip(made, grads, strict=True) if y.edge is not None and g is not None]
        if pairs:
            backward([y for y, _ in pairs], [g for _, g in pairs])
        if self._first:
            return
        for j, t in enumerate(taken):
            if t.dtype.kind == "f":
                array = np.zeros(t.shape, t.dtype) if t.grad is None else t.grad.numpy()
                self._send(array, self.mesh.stage - 1, _tag(number, j, True))

    # -- messages --------------------------------------------------------------------------------------------------------
    def _receive(self, value, source: int, tag: int, what: str) -> np.ndarray:
        array = np.empty(value.shape, value.dtype)
        started = time.perf_counter()
        self.mesh.pipeline.receive(array, source, tag, what)
        self._idle += time.perf_counter() - started
        return array

    def _send(self, array: np.ndarray, to: int, tag: int) -> None:
        self.mesh.pipeline.send(np.ascontiguousarray(array), to, tag)

    def _flush(self) -> None:
        started = time.perf_counter()
        self.mesh.pipeline.flush()
        self._idle += time.perf_counter() - started

    def _share_loss(self, total: float) -> float:
        found = np.zeros(1)
        for ranks in (self.mesh.pipeline, self.mesh.data):
            mine = np.array([total])
            ranks.all_reduce(mine, found, "the loss")
            total = float(found[0])
        return total / self.mesh.data.size


def _tag(micro_batch: int, number: int, gradient: bool) -> int:
    """A message's tag: which micro-batch, which of the values that cross, which direction."""
    return (micro_batch * 256 + number) * 2 + gradient
