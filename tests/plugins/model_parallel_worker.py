"""What the ranks of tests/plugins/test_model_parallel.py do: each check compares with the whole network in one process."""

import functools
import json
import sys
import threading

import numpy as np

import graftwork as gw
from graftwork import nn
from graftwork.errors import GraftworkError
from graftwork.nn import functional as F
from graftwork.plugins.model_parallel import Mesh, full_state, split_cross_entropy, split_pipeline, split_tensor, sum_gradients

STEPS, BATCH, CLASSES = 20, 8, 6
_seeding = threading.Lock()


class Net(nn.Module):
    """Convolutions with a skip connection, batch norm, a pair of dense layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same")
        self.left = nn.Conv2d(8, 8, 3, padding="same")
        self.right = nn.Conv2d(8, 8, 1)
        self.block = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.left(x)) + self.right(x)
        return self.head(self.block(F.global_avg_pool2d(x)))


def make():
    with _seeding:
        gw.manual_seed(3)
        return Net()


def batches():
    rng = np.random.default_rng(5)
    for _ in range(STEPS):
        yield rng.standard_normal((BATCH, 6, 6, 3)).astype(np.float32), rng.integers(0, CLASSES, BATCH)


@functools.cache
def alone():
    """The whole network in this process: losses, gradients of the first step, weights at the end, output of the last batch."""
    model = make()
    optimiser = nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses, first = [], {}
    for x, t in batches():
        model.zero_grad()
        loss = F.cross_entropy(model(gw.tensor(x)), gw.tensor(t))
        loss.backward()
        first = first or {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
        optimiser.step()
        losses.append(loss.item())
    return losses, first, model.state_dict()


def difference(a, b):
    """Largest difference over the largest value."""
    assert a.keys() == b.keys(), (sorted(a), sorted(b))
    return max(float(np.abs(a[k] - b[k]).max() / max(np.abs(b[k]).max(), 1e-3)) for k in a)


def tensor_parallel(mesh, rule=None, compiled=False, split_loss=False):
    model = make()
    whole = model.count_parameters()
    split_tensor(model, mesh, rule)
    optimiser = nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def loss_of(x, t):
        y = model(x)
        return split_cross_entropy(y, t, mesh) if split_loss else F.cross_entropy(y, t)

    forward = gw.compile(loss_of) if compiled else loss_of
    losses, first = [], {}
    for x, t in batches():
        model.zero_grad()
        loss = forward(gw.tensor(mesh.shard(x)), gw.tensor(mesh.shard(t)))
        loss.backward()
        sum_gradients(model.parameters(), mesh.data)
        first = first or full_state(model, gradients=True)
        optimiser.step()
        total = np.zeros(1)
        mesh.data.all_reduce(np.array([loss.item()]), total, "the loss")
        losses.append(total[0] / mesh.data.size)
    return compare(losses, first, full_state(model)) | {"share": model.count_parameters() / whole}


def compare(losses, gradients, weights):
    expected = alone()
    return {
        "loss": float(np.abs(np.subtract(losses, expected[0])).max()),
        "gradients": difference(gradients, {k: expected[1][k] for k in gradients}),
        "weights": difference(weights, {k: expected[2][k] for k in weights}),
        "fell": expected[0][0] - expected[0][-1],
    }


def pipeline(mesh, schedule, boundaries=None, cost="declared", rule=None, micro=4):
    model = make()
    if mesh.tensor.size > 1:
        split_tensor(model, mesh, rule)
    example = gw.tensor(np.zeros((BATCH // mesh.data.size // micro, 6, 6, 3), np.float32))
    pipe = split_pipeline(model, mesh, example, micro, boundaries, cost, schedule)
    optimiser = nn.optim.SGD(pipe.parameters(), lr=0.1, momentum=0.9)
    losses, first = [], {}
    for x, t in batches():
        for p in pipe.parameters():
            p.grad = None
        losses.append(pipe.step(mesh.shard(x), mesh.shard(t), F.cross_entropy))
        first = first or ({n: p.grad.numpy().copy() for n, p in pipe.named_parameters()} if mesh.tensor.size == 1 else {})
        optimiser.step()
    report = pipe.report()
    weights = {n: p.numpy().copy() for n, p in pipe.named_parameters()}
    if mesh.tensor.size > 1:
        weights = {k: v for k, v in full_state(model).items() if k in weights}
        first = weights  # gradients of parts are compared without a pipeline
    found = compare(losses, first, weights) if mesh.tensor.size == 1 else compare_weights(losses, weights)
    output = pipe.predict(mesh.shard(x))
    if output is not None and mesh.size == mesh.pipeline.size and mesh.tensor.size == 1:
        reference = make()
        reference.load_state_dict(alone()[2])
        found["output"] = float(np.abs(output - reference(gw.tensor(x)).numpy()).max())
    return found | {
        "names": sorted(dict(pipe.named_parameters())), "in_flight": report.in_flight, "bubble": report.bubble,
        "parameter_bytes": report.parameter_bytes, "waited": report.waited, "activation_bytes": report.activation_bytes,
    }  # fmt: skip


def compare_weights(losses, weights):
    expected = alone()
    return {
        "loss": float(np.abs(np.subtract(losses, expected[0])).max()),
        "weights": difference(weights, {k: expected[2][k] for k in weights}),
    }


def message(function):
    try:
        function()
    except GraftworkError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def two():
    """Checks on two ranks."""
    mesh, pipe = Mesh(tensor=2), Mesh(pipeline=2)
    opened = {"block.0": "column_open", "block.2": "row_open", "left": "row", "stem": "column", "head": "column_open"}
    short = gw.tensor(np.zeros((2, 6, 6, 3), np.float32))
    return {
        "tensor": tensor_parallel(mesh),
        "tensor, split loss": tensor_parallel(mesh, opened, split_loss=True),
        "compiled": tensor_parallel(mesh, opened, split_loss=True, compiled=True),
        "data": tensor_parallel(Mesh(data=2), {}),
        "gpipe": pipeline(pipe, "gpipe", ["block"]),
        "1f1b": pipeline(pipe, "1f1b", ["right"]),
        "measured": pipeline(pipe, "1f1b", cost="measured"),
        "mesh": message(lambda: Mesh(data=3)),
        "uneven": message(lambda: split_tensor(nn.Sequential(odd=nn.Linear(4, 7)), mesh, {"odd": "column"})),
        "norm": message(lambda: split_tensor(nn.Sequential(norm=nn.BatchNorm(4)), mesh, {"norm": "column"})),
        "batch": message(lambda: split_pipeline(make(), pipe, short, 4).predict(np.zeros((6, 6, 6, 3), np.float32))),
    }  # fmt: skip


def four():
    """Checks on four ranks."""
    return {
        "data x tensor": tensor_parallel(Mesh(data=2, tensor=2)),
        "tensor x pipeline": pipeline(Mesh(tensor=2, pipeline=2), "1f1b"),
        "data x pipeline": pipeline(Mesh(data=2, pipeline=2), "gpipe", micro=2),
        "pipeline": pipeline(Mesh(pipeline=4), "1f1b"),
    }


if __name__ == "__main__":
    from mpi4py import MPI

    found = {"2": two, "4": four}[sys.argv[1]]()
    everyone = MPI.COMM_WORLD.gather(found)
    if MPI.COMM_WORLD.rank == 0:
        with open(sys.argv[2], "w") as file:
            json.dump(everyone, file)
