"""Every hook: documented with its exact signature, called when the documentation says, with the effect it says."""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path

import click
import numpy as np
import pytest

import graftwork as gw
from graftwork import nn, plugins
from graftwork.nn.op import unregister
from graftwork.plugins import hookimpl, hookspecs
from graftwork.plugins.manager import HOOKS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
EXAMPLES = [block for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if "@hookimpl" in block]


def signature(hook: str) -> str:
    return hook + str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")


class Recorder:
    """Implements every hook and remembers who was called with what."""

    def __init__(self):
        self.calls = []
        for hook in HOOKS:
            self._add(hook)

    def _add(self, hook):
        names = list(inspect.signature(getattr(hookspecs, hook)).parameters)

        def call(**arguments):
            self.calls.append((hook, arguments))

        source = f"lambda {', '.join(names)}: call({', '.join(f'{n}={n}' for n in names)})"
        setattr(self, hook, hookimpl(eval(source, {"call": call})))  # pluggy reads the arguments' names


def trainer(manager, steps=3, model=None):
    """A trainer and its data: one epoch of `steps` batches."""
    model = model or nn.Linear(2, 1)
    x = np.random.default_rng(0).standard_normal((4 * steps, 2)).astype(np.float32)
    loader = nn.DataLoader(nn.ArrayDataset(x, x[:, :1] * 3), 4, seed=0)
    optimizer = nn.optim.SGD(model.parameters(), lr=0.1)
    return nn.Trainer(model, optimizer, nn.functional.mse_loss, progress=False, plugins=manager), loader


# Documentation


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_documented_with_its_exact_signature(hook):
    assert f"\n### `{signature(hook)}`\n" in DOCUMENT
    assert inspect.getdoc(getattr(hookspecs, hook)), "and in its own docstring"


def test_the_document_names_no_other_hook():
    assert [name for name in re.findall(r"^### `(\w+)\(", DOCUMENT, re.MULTILINE)] == list(HOOKS)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_documents_examples_load(number, new_manager, monkeypatch):
    module = types.ModuleType(f"document_example_{number}")
    try:
        exec(EXAMPLES[number], module.__dict__)
        info = new_manager().register(module, "example")
        assert info.status == "loaded" and info.hooks
    finally:
        unregister("double_example")


def test_every_hook_has_an_example():
    shown = {name for block in EXAMPLES for name in re.findall(r"@hookimpl\ndef (\w+)", block)}
    assert shown == set(HOOKS)


# When they run


def test_every_hook_is_called_in_order(new_manager):
    m, recorder = new_manager(), Recorder()
    info = m.register(recorder, "recorder")
    assert info.hooks == tuple(sorted(HOOKS))
    m.add_commands(click.Group(), click.Group)
    run, loader = trainer(m)
    run.fit(loader, 1)
    registering = ["register_ops", "register_kernels", "register_modules", "register_models", "register_passes"]
    steps = ["reduce_gradients", "step_end"] * 3
    assert [hook for hook, _ in recorder.calls] == [
        *registering, "register_commands", "prepare_model", "fit_start", *steps, "epoch_end", "fit_end",
    ]  # fmt: skip
    assert {hook for hook, _ in recorder.calls} == set(HOOKS)
    for hook, arguments in recorder.calls:
        assert list(arguments) == list(inspect.signature(getattr(hookspecs, hook)).parameters)
        assert arguments.get("trainer", run) is run


def test_our_trainer_asks_the_plugins_of_the_process():
    recorder = Recorder()
    run, loader = trainer(None)
    with plugins.registered(recorder, "recorder"):
        run.fit(loader, 1)
    assert [hook for hook, _ in recorder.calls][-1] == "fit_end"
    count = len(recorder.calls)
    trainer(None)[0].fit(loader, 1)
    assert len(recorder.calls) == count, "a plugin that was taken out is not called"


# What they do


class Plugin:
    """A plugin from functions: Plugin(step_end=lambda trainer: ...)."""

    def __init__(self, **hooks):
        for name, function in hooks.items():
            setattr(self, name, hookimpl(function))


def test_prepare_model_goes_through_all_plugins_the_last_loaded_first(new_manager):
    class Shifted(nn.Module):
        def __init__(self, inner, by):
            super().__init__()
            self.inner, self.by = inner, by

        def forward(self, x):
            return self.inner(x) + self.by

    m, seen = new_manager(), []
    m.register(Plugin(prepare_model=lambda model: (seen.append(type(model)), Shifted(model, 3.0))[1]), "first")
    m.register(Plugin(prepare_model=lambda model: seen.append(type(model))), "second")
    m.register(Plugin(prepare_model=lambda model: (seen.append(type(model)), Shifted(model, 1.0))[1]), "third")
    model = nn.Linear(2, 1)
    run, loader = trainer(m, model=model)
    before = model.weight.numpy().copy()
    run.fit(loader, 1)
    assert seen == [nn.Linear, Shifted, Shifted]
    assert run.model.by == 3.0 and run.model.inner.by == 1.0 and run.model.inner.inner is model
    assert not np.array_equal(before, model.weight.numpy()), "the optimiser's parameters are trained"


def test_the_first_reduction_wins_and_reaches_the_update(new_manager):
    m, asked = new_manager(), []

    def zero(parameters):
        asked.append("zero")
        for p in parameters:
            p.grad = p.grad * 0.0
        return True

    m.register(Plugin(reduce_gradients=lambda parameters: asked.append("never")), "loaded-first")
    m.register(Plugin(reduce_gradients=zero), "zero")
    m.register(Plugin(reduce_gradients=lambda parameters: asked.append("passes")), "loaded-last")
    run, loader = trainer(m, steps=2)
    before = run.model.state_dict()
    run.fit(loader, 1)
    assert asked == ["passes", "zero"] * 2
    for name, value in run.model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_step_end_sees_the_updated_model_and_may_stop(new_manager):
    m, weights = new_manager(), []

    def step_end(trainer):
        weights.append(trainer.model.weight.numpy().copy())
        trainer.stop = trainer.step == 2

    m.register(Plugin(step_end=step_end), "stopper")
    run, loader = trainer(m, steps=5)
    history = run.fit(loader, 4)
    assert run.step == 2 and len(history) == 1
    assert not np.array_equal(weights[0], weights[1])


def test_an_error_in_a_hook_reaches_the_caller_and_fit_end_still_runs(new_manager):
    m, ended = new_manager(), []

    def fail(trainer):
        raise OSError("disk full")

    m.register(Plugin(step_end=fail), "broken")
    m.register(Plugin(fit_end=lambda trainer: ended.append(trainer.step)), "watcher")
    run, loader = trainer(m)
    with pytest.raises(OSError, match="disk full"):
        run.fit(loader, 1)
    assert ended == [1]


def test_passes_and_modules_are_kept_by_name_and_passes_run():
    graphs = []

    def function(graph):
        graphs.append(graph)
        return graph

    both = Plugin(
        register_passes=lambda register: register("a_pass", function),
        register_modules=lambda register: register("ALayer", nn.Linear),
    )
    with plugins.registered(both, "both"):
        gw.compile(lambda x: x * 2.0 + 1.0)(gw.tensor([1.0]))
        assert len(graphs) == 1
        assert plugins.table("pass")["a_pass"] is function and plugins.table("module")["ALayer"] is nn.Linear
    gw.compile(lambda x: x * 2.0 + 1.0)(gw.tensor([1.0]))
    assert len(graphs) == 1
    assert "a_pass" not in plugins.table("pass") and "ALayer" not in plugins.table("module")
