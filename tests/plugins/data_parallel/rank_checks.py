"""The ranks of `test_data_parallel.py`: `graftwork launch rank_checks.py FOLDER`; rank 0 ends with a line of JSON."""

from __future__ import annotations

import json
import sys

import numpy as np

import graftwork as gw
from graftwork import errors, nn
from graftwork.nn import functional as F
from graftwork.plugins import data_parallel as dp

ENTRIES, BATCH, EPOCHS = 21, 8, 2  # the last batch has 5 entries: uneven parts


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.dense = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm(4, momentum=0.9), nn.Linear(4, 3)

    def forward(self, x):
        return self.dense(F.relu(self.norm(self.conv(x))).mean((1, 2)))


def build() -> tuple[Net, nn.optim.Optimizer]:
    gw.manual_seed(3)
    model = Net()
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            setattr(module, name, nn.Parameter(p.numpy().astype(np.float64)))
        for name, b in list(module._buffers.items()):
            module.register_buffer(name, gw.tensor(b.numpy().astype(np.float64)))
    return model, nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def loader(entries: int = ENTRIES) -> nn.DataLoader:
    rng = np.random.default_rng(5)
    x, labels = rng.standard_normal((entries, 6, 6, 2)), rng.integers(0, 3, entries)
    return nn.DataLoader(nn.ArrayDataset(x, labels), BATCH, shuffle=True, seed=7)


def alone(entries: int = ENTRIES) -> dict[str, np.ndarray]:
    model, optimizer = build()
    batches = loader(entries)
    for epoch in range(EPOCHS):
        batches.epoch = epoch
        for x, target in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
    return model.state_dict()


def difference(state: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(state[n] - expected[n]).max() / np.abs(expected[n]).max()) for n in expected)


def fitted(compile: bool, entries: int = ENTRIES) -> dict[str, np.ndarray]:
    model, optimizer = build()
    if dp.start().rank:  # a wrong start that rank 0's replaces
        for p in model.parameters():
            p.data[...] = 9.0
    trainer = nn.Trainer(model, optimizer, progress=False, compile=compile)
    trainer.fit(loader(entries), EPOCHS)
    return model.state_dict()


def accumulated() -> float:
    """Two backward passes for one update equal one on both batches."""
    model, optimizer = build()
    group = dp.start()
    dp.synchronise_batch_norm(model)
    x, labels = loader().dataset.arrays
    for module in model.modules():
        if isinstance(module, nn.BatchNorm):
            module.eval()  # statistics of half a batch are others
    parallel = dp.DataParallel(model, optimizer)
    group.set_share(1.0 / group.size)
    own = np.arange(group.rank, 4 * group.size, group.size)
    with parallel:
        with parallel.no_sync():
            (F.cross_entropy(model(gw.tensor(x[own[:2]])), gw.tensor(labels[own[:2]])) * 0.5).backward()
        (F.cross_entropy(model(gw.tensor(x[own[2:]])), gw.tensor(labels[own[2:]])) * 0.5).backward()
        parallel.reduce()
    found = {n: p.grad.numpy().copy() for n, p in model.named_parameters()}
    model.zero_grad() if hasattr(model, "zero_grad") else optimizer.zero_grad()
    everything = slice(0, 4 * group.size)
    F.cross_entropy(model(gw.tensor(x[everything])), gw.tensor(labels[everything])).backward()
    return difference(found, {n: p.grad.numpy() for n, p in model.named_parameters()})


def compressed(kind: str | float) -> dict[str, float]:
    """The mean of many compressed sums of the same gradient, and whether all ranks have it bit for bit."""
    from graftwork.plugins.data_parallel.compress import codec

    comm = dp.start().comm
    own = np.random.default_rng(comm.rank).standard_normal(37).astype(np.float32)
    true = np.sum([np.random.default_rng(r).standard_normal(37).astype(np.float32) for r in range(comm.size)], axis=0)
    coder, received, total = codec(kind, comm, 37, own.dtype), np.empty(37, np.float32), np.zeros(37)
    for _ in range(60):
        comm.wait(coder.start(own, received), "a compressed sum")
        total += received
    same = comm.gather(received.tobytes().hex(), "the check")
    return {"error": float(np.abs(total / 60 - true).max()), "equal": len(set(same)) == 1}


def single_precision() -> tuple[Net, nn.optim.Optimizer]:
    gw.manual_seed(3)
    model = Net()
    return model, nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def resumed(kind: str | float, compile: bool) -> dict[str, float]:
    """How far a run that is broken off after half of its epochs comes from one that is not: with and without the residual."""
    group = dp.start()
    x, labels = loader().dataset.arrays
    batches = nn.DataLoader(nn.ArrayDataset(x.astype(np.float32), labels), BATCH, shuffle=True, seed=7)

    def run(epochs: int, resume: bool = False, forget: bool = False, path: str | None = None) -> dict[str, np.ndarray]:
        model, optimizer = single_precision()
        trainer = nn.Trainer(model, optimizer, progress=False, compile=compile, checkpoint_path=path)
        if resume and group.main:  # the others get it from rank 0
            assert trainer.resume() and trainer.kept["data_parallel"]
            trainer.kept = {} if forget else trainer.kept
        trainer.fit(batches, epochs)
        return model.state_dict()

    group.settings.compression = kind
    straight = run(2 * EPOCHS)
    run(EPOCHS, path=f"{sys.argv[1]}/half.h5")
    found = {"with": difference(run(2 * EPOCHS, True, path=f"{sys.argv[1]}/half.h5"), straight)}
    run(EPOCHS, path=f"{sys.argv[1]}/half.h5")
    found["without"] = difference(run(2 * EPOCHS, True, True, path=f"{sys.argv[1]}/half.h5"), straight)
    group.settings.compression = None
    return found


def raised(call) -> str:
    try:
        call()
    except errors.GraftworkError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def mismatched() -> None:
    model = Net() if dp.start().rank == 0 else nn.Linear(4, 5)
    dp.DataParallel(model, nn.optim.SGD(model.parameters(), lr=0.1))


def not_finite() -> None:
    model, optimizer = build()
    parallel, group = dp.DataParallel(model, optimizer), dp.start()
    x, labels = (a[:4].copy() for a in loader().dataset.arrays)
    if group.rank == group.size - 1:
        model.dense.bias.data[0] = np.nan
    with parallel:
        F.cross_entropy(model.eval()(gw.tensor(x)), gw.tensor(labels)).backward()
        parallel.reduce()


def diverged() -> None:
    model, optimizer = build()
    parallel = dp.DataParallel(model, optimizer)
    if dp.start().rank == 1:
        model.conv.weight.data[0, 0, 0, 0] += 1e-12
    parallel.verify()


def checks() -> dict:
    group = dp.start()
    expected = alone()
    few = 8 + group.size - 1  # the second batch has an entry too few for all ranks
    return {
        "size": group.size,
        "eager": difference(fitted(False), expected),
        "compiled": difference(fitted(True), expected),
        "empty": difference(fitted(False, few), alone(few)),
        "accumulated": accumulated(),
        "compression": {str(kind): compressed(kind) for kind in ("fp16", "bf16", 0.1)},
        "resumed": {f"{kind}, {c}": resumed(kind, c) for kind, c in (("fp16", False), (0.1, True))},
        "mismatched": raised(mismatched),
        "not_finite": raised(not_finite),
        "diverged": raised(diverged),
        "too_few": raised(lambda: dp.ShardedLoader(loader(1))),
    }


if __name__ == "__main__":
    dp.configure(bucket_bytes=200)  # several buckets even here
    found = checks()
    everyone = dp.start().comm.gather({k: found[k] for k in ("mismatched", "not_finite", "diverged")}, "the results")
    if dp.start().main:
        print(json.dumps(found | {"everyone": everyone}))
    sys.stdout.flush()
