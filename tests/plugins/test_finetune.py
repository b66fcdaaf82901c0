"""Fine-tuning on real handwritten digits: strategies, rates, batch norm, resuming, the rate finder, saving, refusals."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, nn, zoo
from graftwork.nn.rng import generator, get_state
from graftwork.plugins.transfer import Augmentation, FineTuned, Recipe, find_rates, fine_tune
from graftwork.plugins.transfer.finetune import Run
from graftwork.plugins.transfer.rate_finder import RateCurve, smooth
from graftwork.plugins.transfer.strategy import layers_of, rates, stages, train_last

pytest.importorskip("sklearn")
EACH = 12
QUICK = {"batch_size": 16, "trunk_lr": 5e-4, "head_lr": 1e-2, "augment": Augmentation(flip=False, crop=9 / 8)}


@pytest.fixture(scope="module")
def digits():
    """uint8 pictures (36, 8, 8, 1) of three digits, and their numbers."""
    from sklearn.datasets import load_digits

    data = load_digits()
    places = np.concatenate([np.flatnonzero(data.target == c)[:EACH] for c in (1, 4, 7)])
    return list(np.round(data.images[places] * (255 / 16)).astype(np.uint8)[..., None]), np.repeat(np.arange(3), EACH)


def glyphnet():
    return zoo.create("glyphnet", weights="glyphs", include_top=False)


def split(digits):
    """Pictures to learn from and to check with: a half each."""
    pictures, labels = digits
    train = np.arange(len(labels)) % 2 == 0
    return ([p for p, t in zip(pictures, train, strict=True) if t], labels[train]), (
        [p for p, t in zip(pictures, train, strict=True) if not t], labels[~train],
    )  # fmt: skip


@pytest.fixture(scope="module")
def tuned(digits):
    """A network that was fine-tuned for three epochs, its trunk before and after, and how its step was captured."""
    trunk = glyphnet()
    before = trunk.state_dict()
    (pictures, labels), checks = split(digits)
    run = Run(trunk, pictures, labels, ("1", "4", "7"), Recipe(**{**QUICK, "epochs": 3}))
    with run:
        run.train(checks, None, progress=False)
    network = FineTuned(run.network.eval(), run.classes, run.recipe, "glyphnet", run.trainer.history, run.trainer.best)
    return network, before, trunk.state_dict(), run.trainer


def test_all_layers_learn_and_running_statistics_stay(tuned, digits):
    network, before, after, _ = tuned
    assert network.score(*split(digits)[1]) > 0.85  # a chance hit is 0.33
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert any(name.endswith("conv.weight") for name in changed) and any(name.endswith("gamma") for name in changed)
    assert not any("moving" in name for name in changed)
    assert all(p.requires_grad for p in network.model.trunk.parameters())  # as they were before
    assert not any(getattr(m, "_frozen", False) for m in network.model.modules())


def test_the_uneven_last_batch_is_captured_once(tuned):
    assert len(tuned[3]._static_step.captures) == 2  # 18 pictures in batches of 16: one of 16, one of 2, three times


def test_the_best_epoch_is_kept(tuned):
    network, _, _, trainer = tuned
    accuracies = [h["validation_accuracy"] for h in network.history]
    assert network.best == {"epoch": 1 + int(np.argmax(accuracies)), "value": max(accuracies)}
    for name, value in network.model.state_dict().items():
        np.testing.assert_array_equal(value, trainer._best_state[name], err_msg=name)


def test_saved_and_loaded(tuned, digits, tmp_path):
    network = tuned[0]
    network.save(tmp_path / "digits.h5")
    again = FineTuned.load(tmp_path / "digits.h5")
    np.testing.assert_array_equal(again.predict_proba(digits[0]), network.predict_proba(digits[0]))
    np.testing.assert_allclose(again.predict_proba(digits[0]).sum(axis=1), 1, rtol=1e-6)  # float32
    assert (again.recipe, again.classes, again.history, again.best) == (
        network.recipe, network.classes, network.history, network.best,
    )  # fmt: skip


@pytest.mark.parametrize("change, words", [
    ({"format": 2, "graftwork": "9.0"}, "format 2, written by Graftwork 9.0"),
    ({"kind": "something"}, "not a fine-tuned network"),
    ({"classes": ["a", "b"]}, "head.weight"),
    ({"recipe": {"colour": 1}}, "damaged"),
    ({"input_shape": None}, "damaged"),
])  # fmt: skip
def test_foreign_newer_and_damaged_files(tuned, tmp_path, change, words):
    path = tmp_path / "digits.h5"
    tuned[0].save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["info"] = json.dumps({**json.loads(file.attrs["info"]), **change})
    with pytest.raises(errors.WeightsError, match=words):
        FineTuned.load(path)


def test_saving_needs_the_networks_name(tuned, tmp_path):
    unnamed = FineTuned(tuned[0].model, tuned[0].classes, tuned[0].recipe)
    with pytest.raises(errors.ConfigError, match="model_name"):
        unnamed.save(tmp_path / "digits.h5")


def test_resuming_equals_an_uninterrupted_run(digits, tmp_path, monkeypatch):
    """Gradual unfreezing, dropout, mixup, balanced sampling and the best epoch: all go on as if nothing had happened."""
    train, checks = split(digits)
    options = {**QUICK, "strategy": "gradual", "epochs": 4, "dropout": 0.3, "balance": "sampling", "seed": 5,
               "augment": Augmentation(flip=False, mixup=0.2)}  # fmt: skip

    def run(**more):
        return fine_tune(glyphnet(), *train, 3, validation=checks, **options, **more)

    whole = run()
    evaluate, seen = nn.Trainer.evaluate, []

    def interrupted(self, batches):
        seen.append(self.epoch)
        if self.epoch == 3:
            raise KeyboardInterrupt
        return evaluate(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Trainer, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint=tmp_path / "run.h5")
    assert seen == [1, 2, 3]
    resumed = run(checkpoint=tmp_path / "run.h5", workers=2)
    for name, value in whole.model.state_dict().items():
        np.testing.assert_array_equal(value, resumed.model.state_dict()[name], err_msg=name)
    timeless = [[{k: v for k, v in h.items() if k != "seconds"} for h in r.history] for r in (whole, resumed)]
    assert timeless[0] == timeless[1] and whole.best == resumed.best
    with pytest.raises(errors.CheckpointError, match=r"belongs to another run \(recipe.seed: 5 there, 6 here\)"):
        fine_tune(glyphnet(), *train, 3, validation=checks, **{**options, "seed": 6}, checkpoint=tmp_path / "run.h5")


def test_the_seed_alone_decides_and_the_callers_randomness_stays(digits):
    train, _ = split(digits)
    states = []
    for global_seed in (1, 2):
        gw.manual_seed(global_seed)
        mine, before = generator(), get_state()
        network = fine_tune(glyphnet(), *train, 3, **QUICK, epochs=1, dropout=0.2, seed=7, compile=False)
        assert generator() is mine and get_state() == before
        states.append(network.model.state_dict())
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)


@pytest.mark.parametrize("strategy, trained", [("head", 0), (2, 2), ("few", 4)])
def test_only_the_layers_asked_for_are_trained(digits, strategy, trained):
    """Also with batch statistics: those of frozen layers stay, those of trained ones move."""
    trunk = glyphnet()
    before = trunk.state_dict()
    names = [layer.name for layer in layers_of(trunk)]
    (pictures, labels), _ = split(digits)
    fine_tune(trunk, pictures, labels, 3, **QUICK, strategy=strategy, epochs=1, freeze_statistics=False, compile=False)
    after = trunk.state_dict()
    changed = {name.rsplit(".", 2)[0] for name in after if not np.array_equal(before[name], after[name])}
    expected = {name.rsplit(".", 1)[0] for name in names[len(names) - trained :]}
    assert changed == expected and len(names) == 16
    moved = {name for name in after if "moving" in name and not np.array_equal(before[name], after[name])}
    assert len(moved) == 2 * trained


def test_stages():
    assert stages("head", 10, 4) == [(0, 4)] and stages("all", 10, 4) == [(10, 4)]
    assert stages("few", 10, 4) == [(2, 4)] and stages(3, 10, 4) == [(3, 4)]
    assert stages("gradual", 10, 6) == [(0, 1), (3, 2), (7, 3), (10, 6)]
    assert stages("gradual", 10, 1) == [(10, 1)]
    for wrong in ("most", 11, -1, True, 0.5):
        with pytest.raises(errors.ConfigError, match="a number of layers from 0 to 10"):
            stages(wrong, 10, 4)


def test_rates_fall_from_the_top():
    trunk = zoo.create("squeezenet1_1", include_top=False)
    groups = rates(trunk, 4, 0.1, 0.5)
    assert [g["lr"] for g in groups] == pytest.approx([0.0125, 0.025, 0.05, 0.1])
    assert groups[-1]["parameters"] == [trunk.fire9.expand3x3.weight, trunk.fire9.expand3x3.bias]
    assert len(rates(trunk, 26, 0.1, 1.0)) == 1 and rates(trunk, 0, 0.1, 0.5) == []
    train_last(trunk, 1, freeze_statistics=True)
    assert [n for n, p in trunk.named_parameters() if p.requires_grad] == ["fire9.expand3x3.weight", "fire9.expand3x3.bias"]


def test_early_stopping(digits):
    train, checks = split(digits)
    network = fine_tune(glyphnet(), *train, 3, validation=(checks[0], np.zeros(len(checks[1]), int)), **QUICK, strategy="head",
                        epochs=9, patience=2, compile=False)  # fmt: skip
    assert len(network.history) == network.best["epoch"] + 2 < 9  # it learns, which makes wrong checks worse


def test_float_inputs_and_a_transform_of_ones_own(digits):
    trunk, seen = glyphnet(), []
    x = trunk.preprocess(digits[0]).numpy()

    def note(rng, inputs, labels):
        seen.extend(labels)
        assert inputs.dtype == np.float32 and inputs.shape[1:] == (32, 32, 1)
        return inputs, labels

    fine_tune(trunk, x, digits[1], 3, **QUICK, strategy="head", epochs=1, transform=note, compile=False)
    assert sorted(seen) == sorted(digits[1])


def test_finding_rates_leaves_the_trunk_as_it_was(digits, tmp_path):
    trunk = glyphnet()
    before = trunk.state_dict()
    curve = find_rates(trunk, *digits, 3, steps=24, low=1e-4, high=100.0, **QUICK)
    for name, value in trunk.state_dict().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert 1e-4 <= curve.head_lr < 10 and curve.trunk_lr == pytest.approx(curve.head_lr * 0.05)
    assert len(curve.rates) == len(curve.losses) <= 24 and np.isfinite(curve.losses).all()
    pytest.importorskip("matplotlib")
    curve.plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(errors.ConfigError, match="at least 5 steps"):
        find_rates(trunk, *digits, 3, steps=2)


def test_the_steepest_fall_is_chosen():
    rates = np.geomspace(1e-4, 1, 41)
    losses = 2 - 1 / (1 + np.exp(-4 * np.log(rates / 1e-2))) + np.where(rates > 0.3, 9 * rates, 0)
    assert RateCurve(rates, losses, 0.1).head_lr == pytest.approx(1e-2, rel=0.01)
    assert RateCurve(rates, np.linspace(1, 2, 41), 0.1).head_lr == pytest.approx(1e-5)
    np.testing.assert_allclose(smooth([3.0, 3.0, 3.0]), 3.0)


@pytest.mark.parametrize("options, words", [
    ({"colour": 1}, "no option colour"),
    ({"epochs": 0}, "epochs=0"),
    ({"trunk_lr": 0.0}, "trunk_lr=0.0"),
    ({"dropout": 1.0}, "dropout=1.0"),
    ({"balance": "both"}, "balance='both'"),
    ({"strategy": 99}, "strategy=99"),
])  # fmt: skip
def test_recipes_that_make_no_sense(digits, options, words):
    with pytest.raises(errors.ConfigError, match=words):
        fine_tune(glyphnet(), *digits, 3, **options)


@pytest.mark.parametrize("labels, words", [
    (np.zeros(3, int), r"int64\[3\] for 36 pictures"),
    (np.zeros(36), r"float64\[36\]"),
    (np.full(36, 3), "labels from 3 to 3 for 3 classes"),
    (np.full(36, -1), "labels from -1 to -1"),
])  # fmt: skip
def test_labels_that_do_not_fit(digits, labels, words):
    with pytest.raises(errors.DataError, match=words):
        fine_tune(glyphnet(), digits[0], labels, 3)


def test_pictures_that_do_not_fit(digits, tmp_path):
    with pytest.raises(errors.DataError, match="at least one"):
        fine_tune(glyphnet(), [], np.zeros(0, int), 3)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but no more")
    with pytest.raises(errors.DataError, match=r"broken\.png"):
        fine_tune(glyphnet(), [tmp_path / "broken.png"], np.zeros(1, int), 3)
    with pytest.raises(errors.ModelError, match="no deep features"):
        fine_tune(nn.Linear(3, 3), digits[0], digits[1], 3)
