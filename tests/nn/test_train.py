"""Optimisers against PyTorch, schedules, loading, training, checkpoints and exact resume."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, nn, plugins
from graftwork.nn import checkpoint
from graftwork.nn import functional as F
from graftwork.nn.data import ArrayDataset, DataLoader
from graftwork.plugins import hookimpl

OPTIMISERS = {
    "SGD": [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, {"lr": 0.1, "momentum": 0.9, "nesterov": True}],
    "Adam": [{"lr": 0.01}, {"lr": 0.01, "weight_decay": 0.1}],
    "AdamW": [{"lr": 0.01, "weight_decay": 0.1}],
}


@pytest.mark.parametrize("name, options", [(n, o) for n, many in OPTIMISERS.items() for o in many], ids=str)
def test_optimisers_follow_pytorch(rng, name, options):
    torch = pytest.importorskip("torch")
    start, target = rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    ours, theirs = nn.Parameter(start.copy()), torch.nn.Parameter(torch.tensor(start))
    optimiser = getattr(nn.optim, name)([ours], **options)
    peer = getattr(torch.optim, name)([theirs], **options)
    for _ in range(8):
        optimiser.zero_grad()
        ((ours - gw.tensor(target)) ** 2).sum().backward()
        optimiser.step()
        peer.zero_grad()
        ((theirs - torch.tensor(target)) ** 2).sum().backward()
        peer.step()
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-10)  # float64, eight steps


@pytest.mark.parametrize("make, peer", [
    (lambda o: nn.schedule.StepLR(o, [3, 6], 0.5), lambda t, o: t.MultiStepLR(o, [3, 6], 0.5)),
    (lambda o: nn.schedule.CosineLR(o, 10), lambda t, o: t.CosineAnnealingLR(o, 10)),
    (lambda o: nn.schedule.OneCycleLR(o, 10), lambda t, o: t.OneCycleLR(o, 0.1, 10)),
], ids=["step", "cosine", "one-cycle"])  # fmt: skip
def test_schedules_follow_pytorch(make, peer):
    torch = pytest.importorskip("torch")
    optimiser = nn.optim.SGD([nn.Parameter(np.zeros(2))], lr=0.1)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    ours, theirs = make(optimiser), peer(torch.optim.lr_scheduler, other)
    for _ in range(9):
        assert optimiser.lr == pytest.approx(other.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        ours.step()
        other.step()
        theirs.step()


def test_groups_keep_their_ratio():
    a, b = nn.Parameter(np.zeros(2)), nn.Parameter(np.zeros(2))
    optimiser = nn.optim.SGD([{"parameters": [a], "lr": 0.1}, {"parameters": [b], "lr": 0.01}])
    optimiser.lr = 0.2
    assert [g["lr"].item() for g in optimiser.groups] == pytest.approx([0.2, 0.02])
    with pytest.raises(errors.ConfigError, match="unknown group options"):
        nn.optim.SGD([{"parameters": [a], "rate": 1}])
    with pytest.raises(errors.ConfigError, match="no parameters"):
        nn.optim.SGD([])


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_covers_everything_in_the_same_order(workers):
    data = ArrayDataset(np.arange(23), np.arange(23) * 2)
    loader = DataLoader(data, 5, shuffle=True, workers=workers, seed=3)
    first = np.concatenate([x.numpy() for x, _ in loader])
    second = np.concatenate([x.numpy() for x, _ in loader])
    assert sorted(first) == sorted(second) == list(range(23)) and not np.array_equal(first, second)
    again = DataLoader(data, 5, shuffle=True, workers=2 - workers, seed=3)
    np.testing.assert_array_equal(np.concatenate([x.numpy() for x, _ in again]), first)
    assert len(loader) == 5 and len(DataLoader(data, 5, drop_last=True)) == 4


def test_a_workers_error_arrives_and_leaving_early_stops_the_workers():
    class Broken:
        def __len__(self):
            return 8

        def __getitem__(self, index):
            if index == 5:
                raise errors.DataError("entry 5 is broken")
            return (np.zeros(2),)

    with pytest.raises(errors.DataError, match="entry 5"):
        list(DataLoader(Broken(), 2, workers=2))
    for _ in DataLoader(ArrayDataset(np.zeros(1000)), 1, workers=2):
        break


def blobs(n=120):
    """Two classes of points that a small network separates."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    return (rng.standard_normal((n, 4)) + labels[:, None] * 3).astype(np.float32), labels


def trainer(path=None):
    gw.manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    optimiser = nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = nn.schedule.CosineLR(optimiser, 40)
    return nn.Trainer(model, optimiser, schedule=schedule, checkpoint_path=path, progress=False)


def test_training_learns():
    x, y = blobs()
    run = trainer()
    history = run.fit(DataLoader(ArrayDataset(x, y), 16, shuffle=True, seed=1), 5)
    assert history[-1]["loss"] < 0.3 * history[0]["loss"] or history[-1]["accuracy"] > 0.95
    assert run.evaluate(DataLoader(ArrayDataset(x, y), 50))["accuracy"] > 0.95


def test_compiled_training_equals_eager():
    x, y = blobs()
    histories = []
    for compiled in (False, True):
        run = trainer()
        run.compile = compiled
        histories.append(run.fit(DataLoader(ArrayDataset(x, y), 16, shuffle=True, seed=1), 3))
    for eager, static in zip(*histories, strict=True):
        assert static["loss"] == pytest.approx(eager["loss"], rel=1e-4)  # float32, planned kernels sum in another order
    assert all(p.grad is None for p in run.model.parameters())


def test_a_compiled_step_follows_what_is_frozen():
    x, y = blobs()
    finals = []
    for compiled in (False, True):
        run = trainer()
        run.compile = compiled
        first = run.model[0]
        first.freeze()
        before = first.state_dict()
        run.fit(DataLoader(ArrayDataset(x, y), 16, shuffle=True, seed=1), 1)
        assert all(np.array_equal(v, before[n]) for n, v in first.state_dict().items())
        first.unfreeze()
        run.fit(DataLoader(ArrayDataset(x, y), 16, shuffle=True, seed=1), 2)
        assert not any(np.array_equal(v, before[n]) for n, v in first.state_dict().items())
        finals.append(run.model.state_dict())
    for name, value in finals[0].items():  # float32, planned kernels sum in another order
        np.testing.assert_allclose(value, finals[1][name], rtol=1e-4, atol=1e-6, err_msg=name)


def patient(x, y, path=None, epochs=9, evaluated=None):
    """A run on checks that get worse, with a script of validation losses instead of measured ones."""
    script = iter(evaluated or [3.0, 1.0, 2.0, 1.5, 0.5])
    run = trainer(path)
    run.monitor, run.patience = "validation_loss", 2
    run.evaluate = lambda batches: {"loss": next(script)}
    run.states = []
    run._save, run.save = run.save, lambda p: (run.states.append(run.model.state_dict()), run._save(p))
    if path is not None:
        run.resume()
    run.fit(DataLoader(ArrayDataset(x, y), 16, shuffle=True, seed=1), epochs, validation=[])
    return run


def test_early_stopping_and_the_best_epoch(tmp_path):
    x, y = blobs(48)
    run = patient(x, y, tmp_path / "run.h5")
    assert len(run.history) == 4 and run.best == {"epoch": 2, "value": 1.0} and run.exhausted
    run.restore_best()
    for name, value in run.model.state_dict().items():
        np.testing.assert_array_equal(value, run.states[1][name])
    again = patient(x, y, tmp_path / "run.h5", evaluated=[0.0])
    assert len(again.history) == 4  # it had stopped for good
    again.restore_best()
    for name, value in again.model.state_dict().items():
        np.testing.assert_array_equal(value, run.states[1][name])


def test_what_cannot_be_watched():
    x, y = blobs(48)
    with pytest.raises(errors.ConfigError, match="patience=3, monitor=None"):
        nn.Trainer(nn.Linear(2, 2), nn.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), patience=3)
    run = trainer()
    with pytest.raises(errors.ConfigError, match="no best epoch"):
        run.restore_best()
    run.monitor = "validation_loss"
    with pytest.raises(errors.ConfigError, match="'validation_loss' is not in the history, which has epoch, loss"):
        run.fit(DataLoader(ArrayDataset(x, y), 16), 1)


def test_a_checkpoint_of_another_run(tmp_path):
    run = trainer(tmp_path / "run.h5")
    run.notes = {"data": "a", "size": [3, 4]}
    run.save(tmp_path / "run.h5")
    assert run.resume()
    run.notes = {"data": "b", "size": [3, 4]}
    with pytest.raises(errors.CheckpointError, match=r"another run \(data: 'a' there, 'b' here\)"):
        run.resume()


def test_soft_targets_agree_with_class_numbers(rng):
    logits, labels = rng.standard_normal((5, 3)), rng.integers(0, 3, 5)
    loss = nn.SoftCrossEntropyLoss()
    for smoothing in (0.0, 0.1):
        rows = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
        plain = F.cross_entropy(gw.tensor(logits), gw.tensor(labels), smoothing).item()
        assert loss(gw.tensor(logits), gw.tensor(rows)).item() == pytest.approx(plain, rel=1e-12)
    rows[3:] = 0  # rows that count for nothing
    assert loss(gw.tensor(logits), gw.tensor(rows)).item() == pytest.approx(
        loss(gw.tensor(logits[:3]), gw.tensor(rows[:3])).item(), rel=1e-12
    )
    assert loss(gw.tensor(logits), gw.tensor(labels)).item() == pytest.approx(
        F.cross_entropy(gw.tensor(logits), gw.tensor(labels)).item()
    )


def test_a_block_with_its_own_randomness():
    from graftwork.nn import rng

    gw.manual_seed(1)
    generator, before = rng.generator(), rng.get_state()
    found = []
    for _ in range(2):
        with rng.seeded(9):
            found.append((rng.generator().random(), F.dropout(gw.tensor(np.ones(8)), 0.5).numpy()))
    assert found[0][0] == found[1][0] and np.array_equal(found[0][1], found[1][1])
    assert rng.generator() is generator and rng.get_state() == before


def test_a_compiled_step_captures_what_is_done_to_gradients():
    class Halved:
        @hookimpl
        def reduce_gradients(self, parameters, trainer):
            for p in parameters:
                p.grad = p.grad * 0.5
            return True

    class Looking:
        @hookimpl
        def reduce_gradients(self, parameters, trainer):
            return parameters[0].grad.sum().item() > 0

    x, y = blobs()
    weights = []
    with plugins.registered(Halved(), "halved"):
        for compiled in (False, True):
            run = trainer()
            run.compile = compiled
            run.fit(DataLoader(ArrayDataset(x, y), 16, shuffle=True, seed=1), 1)
            weights.append(next(run.model.parameters()).numpy().copy())
    np.testing.assert_allclose(*weights, rtol=1e-3, atol=1e-5)  # float32, planned kernels sum in another order
    with plugins.registered(Looking(), "looking"), pytest.raises(errors.CaptureError, match="values"):
        run = trainer()
        run.compile = True
        run.fit(DataLoader(ArrayDataset(x, y), 16), 1)


def test_resuming_is_exact(tmp_path):
    x, y = blobs()

    def loader():
        return DataLoader(ArrayDataset(x, y), 16, shuffle=True, seed=1)

    whole = trainer()
    whole.fit(loader(), 4)
    first = trainer(tmp_path / "run.h5")
    first.fit(loader(), 2)
    second = trainer(tmp_path / "run.h5")
    assert second.resume() and second.epoch == 2
    second.fit(loader(), 4)
    for name, value in whole.model.state_dict().items():
        np.testing.assert_array_equal(value, second.model.state_dict()[name], err_msg=name)


def test_bad_checkpoints_change_nothing(tmp_path):
    run = trainer(tmp_path / "run.h5")
    assert run.resume() is False
    run.save(tmp_path / "run.h5")
    data = (tmp_path / "run.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: len(data) // 2])
    before = run.model.state_dict()
    with pytest.raises(errors.CheckpointError, match="damaged or truncated"):
        run.resume(tmp_path / "cut.h5")
    other = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    foreign = nn.Trainer(other, nn.optim.SGD(other.parameters(), lr=0.1), progress=False)
    with pytest.raises(errors.CheckpointError):
        foreign.resume(tmp_path / "run.h5")
    for name, value in run.model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "c.h5"
    checkpoint.save(path, {"a": {"x": np.ones(3)}}, {"n": 1})
    with pytest.raises(TypeError):
        checkpoint.save(path, {"a": {"x": np.ones(3)}}, {"n": object()})
    assert checkpoint.load(path)[1] == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.h5"]
    with pytest.raises(errors.DataError, match="does not exist"):
        checkpoint.save(tmp_path / "no" / "c.h5", {}, {})


def test_metrics():
    scores = np.array([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3]])
    assert nn.metrics.top_k_accuracy(scores, np.array([1, 2])) == 0.5
    assert nn.metrics.top_k_accuracy(scores, np.array([1, 2]), k=2) == 1.0
    np.testing.assert_array_equal(nn.metrics.confusion_matrix([0, 1, 1], [0, 0, 1], 2), [[1, 0], [1, 1]])
    assert F.accuracy(gw.tensor(scores), gw.tensor(np.array([1, 0]))) == 1.0
