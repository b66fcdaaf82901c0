"""Magnitude pruning: exact shares, both scopes, a schedule during training, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, nn, plugins
from graftwork.nn.modules.module import assign
from graftwork.plugins.prune import MagnitudePruner, magnitude_masks, sparsity


@pytest.fixture
def model():
    gw.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 4))
    assign(net[2].weight, net[2].weight.numpy() * 1e-4)  # one layer is much smaller than the other
    return net


def zeros(parameter):
    return int((parameter.numpy() == 0).sum())


def test_global_scope_takes_the_smallest_of_all(model):
    masks = magnitude_masks(model, 0.25)
    assert sparsity(model) == 0.0  # the model is left as it is
    assert sum(int((~m).sum()) for m in masks.values()) == 30
    assert masks["0.weight"].all()  # all thirty come from the small layer
    pruned = np.abs(model[2].weight.numpy())
    assert pruned[~masks["2.weight"]].max() <= pruned[masks["2.weight"]].min()


def test_layer_scope_takes_the_same_share_of_each(model):
    MagnitudePruner(model, 0.25, scope="layer")
    assert (zeros(model[0].weight), zeros(model[2].weight)) == (20, 10)
    assert sparsity(model) == 0.25


def train(model, steps, pruner):
    x = np.random.default_rng(0).standard_normal((4 * steps, 8)).astype(np.float32)
    loader = nn.DataLoader(nn.ArrayDataset(x, np.arange(4 * steps) % 4), 4)
    trainer = nn.Trainer(model, nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), progress=False)
    with plugins.registered(pruner, "pruner-under-test"):
        trainer.fit(loader, 1)


def test_pruned_weights_stay_zero_in_training(model):
    pruner = MagnitudePruner(model, 0.5, scope="layer")  # globally the small layer would vanish, and gradients with it
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    train(model, 3, pruner)
    for name, mask in pruner.masks.items():
        after = dict(model.named_parameters())[name].numpy()
        assert (after[~mask] == 0).all()
        assert not np.array_equal(after[mask], before[name][mask])  # the others have learned


def test_schedule_grows_to_the_amount_and_never_back(model):
    pruner = MagnitudePruner(model, 0.5, start=1, end=5)
    shares = [pruner.share(step) for step in range(7)]
    assert shares == sorted(shares)
    assert shares[:2] == [0, 0] and shares[5:] == [0.5, 0.5]
    assert sparsity(model) == 0.0
    train(model, 6, pruner)
    assert sparsity(model) == 0.5


def test_refusals(model):
    with pytest.raises(errors.ConfigError, match="amount=1.0; expected a share"):
        magnitude_masks(model, 1.0)
    with pytest.raises(errors.ConfigError, match="scope='row'"):
        magnitude_masks(model, 0.5, "row")
    with pytest.raises(errors.ConfigError, match="nothing to prune"):
        magnitude_masks(nn.ReLU(), 0.5)
    with pytest.raises(errors.ConfigError, match="start=5, end=2"):
        MagnitudePruner(model, 0.5, start=5, end=2)
    assign(model[0].weight, np.full((8, 10), np.nan))
    with pytest.raises(errors.ConfigError, match=r"0\.weight holds NaN"):
        magnitude_masks(model, 0.5)
