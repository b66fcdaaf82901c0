"""The hooks of Graftwork: one documented function each.

A plugin is a module (or an object) with functions of these names under ``@hookimpl``. A function may leave out arguments it
does not need. The ``register_*`` hooks run once, when plugins load; the others run in training, at most once per step.
Hooks of the plugin that loaded last run first; ``@hookimpl(tryfirst=True)`` and ``@hookimpl(trylast=True)`` change that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("graftwork")
hookimpl = pluggy.HookimplMarker("graftwork")


@hookspec
def register_ops(register: Callable[..., None]) -> None:
    """Add operations: call ``register(op)`` with each ``graftwork.nn.op.Op``. Runs once, before the other hooks."""


@hookspec
def register_kernels(register: Callable[..., None]) -> None:
    """Add kernels, for your ops or ours: call ``register(op, device, variant, kernel, dtypes=None)``. Runs once.

    ``op``, ``device`` ("cpu" or "cuda") and ``variant`` are strings; ``kernel`` is a function
    ``fn(*arrays, out, **attrs)``, or the text "module:function" where it is found at its first use; ``dtypes`` names the
    element types it takes (None: any).
    """


@hookspec
def register_models(register: Callable[..., None]) -> None:
    """Add networks to ``zoo.create``: call ``register(name, factory, **info)``. Runs once, at loading.

    ``factory(include_top, pooling, classes, input_shape)`` returns a Module. ``info`` may hold ``summary``, and
    ``weights``: published names and where their files are.
    """


@hookspec
def register_modules(register: Callable[..., None]) -> None:
    """Add layer classes by the name that files use for them: call ``register(name, module_class)``. Runs once.

    ``zoo.load_keras`` builds them: see ``zoo.register_keras_layer``, which may also take a function. They are kept in
    ``plugins.table("module")``.
    """


@hookspec
def register_passes(register: Callable[..., None]) -> None:
    """Add graph passes for ``gw.compile``: call ``register(name, function)``. Runs once, at loading.

    ``function(graph)`` returns the graph to go on with. It runs after ours, before the last clean-up.
    """


@hookspec
def register_commands(cli: Any) -> None:
    """Add commands to the ``graftwork`` program: decorate them with ``@cli.command()``; ``cli`` is a ``click.Group``.

    Runs when the program starts.
    """


@hookspec
def prepare_model(model: Any, trainer: Any) -> Any:
    """Change the model before the trainer uses it: return the Module to train instead, or None to leave it as it is.

    Runs once per fit, before ``fit_start``; each plugin receives what the one before it returned, and a second fit what the
    first one trained. The optimiser holds the model's parameters already: keep those objects, change their values if need be.
    """


@hookspec
def fit_start(trainer: Any) -> None:
    """Run before the first step of a fit: model and optimiser are in place. What it returns is ignored."""


@hookspec(firstresult=True)
def reduce_gradients(parameters: Sequence[Any], trainer: Any) -> bool | None:
    """Combine gradients across workers, after the backward pass and before the update of every step.

    Change each ``parameter.grad`` in place and return True: no further plugin is asked. Return None to pass. A compiled step
    captures what it does, once: there it has to be written in ops.
    """


@hookspec
def step_end(trainer: Any) -> None:
    """Run after the update of every training step; keep it cheap. What it returns is ignored."""


@hookspec
def epoch_end(trainer: Any, record: dict[str, Any]) -> None:
    """Run at the end of every epoch, before validation and checkpoint; may change ``record``, which joins the history."""


@hookspec
def fit_end(trainer: Any) -> None:
    """Run when a fit ends, by its last step, an early stop or an error. What it returns is ignored."""
