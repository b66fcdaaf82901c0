"""Which function builds which layer class: Keras's own, and those that users and plugins add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import ConfigError, GraftworkError
from ...nn import Module
from ..matching import own_slots
from .config import Built, LayerConfig, Shape, Weight, same_mask

Builder = Callable[[LayerConfig, list[Shape]], Built]
LAYERS: dict[str, Builder] = {}  # Keras's layer classes
CUSTOM: dict[str, Builder] = {}  # what users and plugins registered
ARGUMENTS: dict[str, frozenset[str]] = {}  # call arguments (beside tensors) that a layer class understands
ANY = ("*",)  # a layer that looks through its arguments itself
_BASE = {
    "name", "trainable", "dtype", "batch_input_shape", "batch_shape", "build_config", "input_dtype", "activity_regularizer",
    "autocast", "quantization_config",
}  # fmt: skip


def layer(*names: str, arguments: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Enter a builder under Keras's class names."""

    def enter(builder: Any) -> Any:
        for name in names:
            LAYERS[name] = builder
            ARGUMENTS[name] = frozenset(arguments)
        return builder

    return enter


def build(c: LayerConfig, shapes: list[Shape]) -> Built:
    """The layer that a configuration describes, for inputs of these shapes. Raises ModelError naming the layer."""
    custom = CUSTOM.get(c.kind) or CUSTOM.get(c.kind.rpartition(">")[2])
    if custom is not None:
        return custom(c, shapes)
    if c.kind not in LAYERS:
        raise c.error("no such layer here; zoo.register_keras_layer adds your own classes")
    given = {k for k, v in c.call.kwargs.items() if not (v is None or v is False)} - ARGUMENTS[c.kind]
    given -= {"inputs", "x", "sequence", "sequences"}  # the tensors themselves, given by name
    given -= {"training"} if c.keras >= 3 else set()  # Keras 3 puts the model's own in its place
    if given and ARGUMENTS[c.kind] != frozenset(ANY):
        raise c.error(f"is called with the arguments {', '.join(map(repr, sorted(given)))}, which are not supported")
    return LAYERS[c.kind](c, shapes)


def knows(kind: str, *aliases: Any) -> bool:
    """Whether a custom layer is registered under any of these names ("package>Name" also counts as "Name")."""
    names = [n for n in (kind, *aliases) if isinstance(n, str)]
    return any(n in CUSTOM or n.rpartition(">")[2] in CUSTOM for n in names)


def register_keras_layer(name: str, layer: type[Module] | Builder) -> None:
    """Let `load_keras` build layers of a class of your own.

    name: the class name that model files give ("MyLayer", also found as "package>MyLayer"). layer: a Module subclass, made from
    the layer's own settings (`layer(**config)` without Keras's base settings such as name and dtype), its tensors in the file's
    order; `output_shape(*input_shapes)`, if it has one, says its output's shape (batch first), otherwise that of the first
    input. Or a function `(config, input_shapes) -> graftwork.zoo.keras.Built`, which sees shapes before anything is made.
    Raises ConfigError if the name is Keras's own or taken.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a layer's name is {name!r}, expected a non-empty string")
    if not callable(layer):
        raise ConfigError(f"layer {name!r} is a {type(layer).__name__}, expected a Module class or a function")
    if name in LAYERS or name in CUSTOM:
        raise ConfigError(f"a layer named {name!r} is known already; choose another name")
    CUSTOM[name] = _from_class(layer) if isinstance(layer, type) else layer  # type: ignore[assignment]


def unregister_keras_layer(name: str) -> None:
    """Take a layer class out again (plugins that are unloaded, tests)."""
    CUSTOM.pop(name, None)


def _from_class(kind: Any) -> Builder:
    def builder(c: LayerConfig, shapes: list[Shape]) -> Built:
        settings = {k: v for k, v in c.values.items() if k not in _BASE and isinstance(k, str)}
        try:
            module = kind(**settings)
        except GraftworkError as error:
            raise c.error(str(error)) from error
        except (TypeError, ValueError) as error:
            raise c.error(f"{kind.__name__}(**settings) does not take its settings {sorted(settings)}: {error}") from error
        if not isinstance(module, Module):
            raise c.error(f"{kind.__name__} is registered for it and makes a {type(module).__name__}, expected an nn.Module")
        weights = [Weight(slot.name, tuple(slot.shape), str(i)) for i, slot in enumerate(all_slots(module))]
        rule = getattr(module, "output_shape", None)
        output = tuple(rule(*shapes)) if callable(rule) else shapes[0] if shapes else ()
        return Built(lambda: module, (output,), tuple(weights), masks=same_mask)

    return builder


def all_slots(module: Module) -> list[Any]:
    """A module's tensors as files name and shape them: its own, then those of its sub-modules in order."""
    return [slot for sub in module.modules() for slot in own_slots(sub)]


