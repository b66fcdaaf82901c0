"""Module: a tree of layers that own parameters and buffers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...errors import WeightsError
from ..autograd import mark_set, mark_written, mode
from ..listing import Row, listing
from ..tensor import FLOATS, Tensor, tensor


class Parameter(Tensor):
    """A tensor that a module trains. Frozen parameters do not require a gradient."""

    __slots__ = ()

    def __init__(self, data):
        super().__init__(tensor(data).data)
        if self.dtype in FLOATS:
            self.requires_grad = True


class Module:
    """Base of all layers and models.

    Assign parameters, buffers and sub-modules as attributes in `__init__`, and write `forward`. Attribute order is the
    order of everything that lists them. Names are paths joined by dots ("fire2.squeeze1x1.weight").
    """

    def __init__(self):
        self._parameters: dict[str, Parameter] = {}
        self._buffers: dict[str, Tensor] = {}
        self._modules: dict[str, Module] = {}
        self.training = True

    def __setattr__(self, name: str, value: Any) -> None:
        if mode.trace is not None:
            mode.trace.assigns(self, name)
        table = {Parameter: "_parameters"}.get(type(value)) or ("_modules" if isinstance(value, Module) else None)
        if table is not None:
            if "_modules" not in self.__dict__:
                raise AttributeError(f"call super().__init__() in {type(self).__name__} before assigning {name!r}")
            for other in (self._parameters, self._buffers, self._modules):
                other.pop(name, None)
            self.__dict__[table][name] = value
        object.__setattr__(self, name, value)
        mark_set()

    def __delattr__(self, name: str) -> None:
        for table in (self._parameters, self._buffers, self._modules):
            table.pop(name, None)
        object.__delattr__(self, name)
        mark_set()

    def register_buffer(self, name: str, value: Tensor) -> None:
        """A tensor that belongs to the module's state but is not trained (running statistics)."""
        self._buffers[name] = value
        object.__setattr__(self, name, value)
        mark_set()

    def add_module(self, name: str, module: Module) -> None:
        """A sub-module under a name that need not be an identifier."""
        self._modules[name] = module
        object.__setattr__(self, name, module)
        mark_set()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward(); define it to say what the module computes")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward(*args, **kwargs)
        if mode.taps is not None and id(self) in mode.taps:
            mode.taps[id(self)] = output
        return output

    # -- walking the tree --------------------------------------------------------------------------------------------
    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module under `prefix` and everything below it, parents first; a shared module once."""
        seen: set[int] = set()

        def walk(module: Module, path: str) -> Iterator[tuple[str, Module]]:
            if id(module) in seen:
                return
            seen.add(id(module))
            yield path, module
            for name, child in module._modules.items():
                yield from walk(child, f"{path}.{name}" if path else name)

        return walk(self, prefix)

    def modules(self) -> Iterator[Module]:
        return (module for _, module in self.named_modules())

    def _named(self, table: str) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in getattr(module, table).items():
                if id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its path; a shared one once, under its first path."""
        return self._named("_parameters")  # type: ignore[return-value]

    def parameters(self) -> Iterator[Parameter]:
        return (p for _, p in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self._named("_buffers")

    def count_parameters(self, trainable_only: bool = False) -> int:
        """How many numbers the parameters hold."""
        return sum(p.size for p in self.parameters() if p.requires_grad or not trainable_only)

    # -- state -------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers by path."""
        pairs = [*self.named_parameters(), *self.named_buffers()]
        return {name: value.numpy().copy() for name, value in pairs}

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Set parameters and buffers from `state`; nothing is changed unless everything fits.

        Raises WeightsError listing what is missing, unexpected (both only if `strict`) or of another shape.
        """
        own = dict([*self.named_parameters(), *self.named_buffers()])
        shapes = {name: np.shape(value) for name, value in state.items()}
        rows = [
            Row("mismatched", name, own[name].shape, shape)
            for name, shape in shapes.items()
            if name in own and shape != own[name].shape
        ]
        if strict:
            rows += [Row("missing", name, own[name].shape) for name in own if name not in state]
            rows += [Row("unexpected", name, None, shape) for name, shape in shapes.items() if name not in own]
        if rows:
            raise WeightsError(f"this state does not fit {type(self).__name__}; nothing was loaded:\n{listing(rows)}")
        for name, value in state.items():
            if name in own:
                assign(own[name], value)

    def train(self, mode: bool = True) -> Module:
        """Training behaviour (dropout, batch statistics) on or off, here and below. Frozen modules stay in inference."""
        for module in self.modules():
            module.training = mode and not getattr(module, "_frozen", False)
        return self

    def eval(self) -> Module:
        return self.train(False)

    def freeze(self) -> Module:
        """No gradients for any parameter here and below, and batch norm really frozen: its statistics stay too."""
        return self._set_frozen(True)

    def unfreeze(self) -> Module:
        """Undo `freeze`; call `train()` afterwards to train with batch statistics again."""
        return self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> Module:
        for module in self.modules():
            module._frozen = frozen
            if frozen:
                module.training = False
        for p in self.parameters():
            p.requires_grad = not frozen
        return self

    def zero_grad(self) -> None:
        """Forget all collected gradients."""
        for p in self.parameters():
            if p.requires_grad:
                p.grad = None

    def astype(self, dtype) -> Module:
        """Convert all floating parameters and buffers in place."""
        for value in [*self.parameters(), *(b for _, b in self.named_buffers())]:
            if value.dtype in FLOATS:
                value.data = value.data.astype(dtype)
                mark_written(value)
        return self

    @property
    def device(self) -> str:
        """Where the parameters are, by the first of them; "cpu" for a module without any."""
        return next((p.device for p in self.parameters()), "cpu")

    def to(self, device: str) -> Module:
        """Move all parameters and buffers to a device, in place."""
        for value in [*self.parameters(), *(b for _, b in self.named_buffers())]:
            value.data = value.detach().to(device).data
            mark_written(value)
        return self

    def extra_repr(self) -> str:
        """What stands between the brackets of the module's one-line description."""
        return ""

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}({self.extra_repr()})"]
        for name, child in self._modules.items():
            lines += [f"  {name}: {line}" if i == 0 else f"  {line}" for i, line in enumerate(repr(child).split("\n"))]
        return "\n".join(lines)


def _heard(taps: dict[int, Any], module: Module) -> Any:
    return taps[id(module)]


@contextlib.contextmanager
def listen(modules: Sequence[Module]) -> Iterator[Callable[[Module], Any]]:
    """Inside the block, what each of `modules` returns is kept: the function given says it, or None before a module ran.

    Of a module that runs several times, the last output counts. Per thread, so that others may use the same model meanwhile.
    """
    before, taps = mode.taps, {id(module): None for module in modules}
    mode.taps = {**(before or {}), **taps}
    try:
        yield partial(_heard, mode.taps)
    finally:
        if before is not None:  # a block around this one may listen to the same modules
            before.update({key: value for key, value in mode.taps.items() if key in before})
        mode.taps = before


def assign(target: Tensor, value) -> None:
    """Write values into a tensor that others hold: same shape, converted to its dtype and device."""
    if mode.trace is not None:
        mode.trace.refuse("values are assigned to a tensor, which would happen once and never again; do it outside")
    source = tensor(np.asarray(value, target.dtype), device=target.device).data
    target.data[...] = source
    mark_written(target)


def fill(target: Tensor, shape: tuple[int, ...], read: Callable[[np.ndarray | None], np.ndarray]) -> None:
    """Let `read(out)` write values of this shape into a tensor that others hold, without a copy where its memory allows."""
    data = target.data
    if mode.trace is None and isinstance(data, np.ndarray) and data.flags.c_contiguous and data.flags.writeable:
        read(data.reshape(shape))
        mark_written(target)
    else:
        assign(target, read(None).reshape(target.shape))


class Sequential(Module):
    """Modules one after another, named "0", "1", ..., or by keyword."""

    def __init__(self, *modules: Module, **named: Module):
        super().__init__()
        for name, module in [*((str(i), m) for i, m in enumerate(modules)), *named.items()]:
            self.add_module(name, module)

    def forward(self, x):
        for module in self._modules.values():
            x = module(x)
        return x

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __getitem__(self, index: int) -> Module:
        return list(self._modules.values())[index]
