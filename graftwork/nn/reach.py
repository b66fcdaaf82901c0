"""What a compiled function can reach besides its arguments, and whether it has changed.

Python values that a function reads (globals, closures, defaults, attributes, and the same of the functions that it calls) are
frozen into its graph, so they decide, as arguments do, which graph serves a call: plain values and containers by content, NumPy
arrays by a checksum, everything else by identity. Functions and classes of the user's are followed; ours and other installed
packages' are taken as they are. Attributes count if a function within reach has their name in its code.
"""

from __future__ import annotations

import collections
import dis
import functools
import inspect
import os
import sys
import types
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from .modules.module import Module
from .optim import Optimizer
from .tensor import Tensor

PLAIN = (int, float, complex, str, bytes, bool, type(None), np.dtype, np.generic, slice, type(Ellipsis), type)
_CONTAINERS = (tuple, list, dict, set, frozenset, collections.deque)
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial, property, staticmethod, classmethod)
_FOREIGN = {"graftwork", *sys.stdlib_module_names} - {"__main__"}
_DYNAMIC = {"getattr", "setattr", "vars", "__dict__", "__getattribute__"}


def frozen(value: Any, alive: list | None = None) -> Any:
    """Something hashable that changes when the value does. alive: collects objects whose id was taken, to be kept."""
    kind = type(value)
    if kind is int or kind is str or kind is bool or value is None:
        return kind, value
    if isinstance(value, (float, complex, np.generic, slice)):
        return kind, repr(value)  # tells -0.0 from 0.0, and nan equals itself
    if isinstance(value, PLAIN):
        return kind, value
    if isinstance(value, dict):
        return kind, *[(frozen(k, alive), frozen(v, alive)) for k, v in value.items()]
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(frozen(v, alive) for v in value)
    if isinstance(value, (tuple, list, collections.deque)):
        return kind, *[frozen(v, alive) for v in value]
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return kind, value.shape, value.dtype.str, zlib.crc32(np.ascontiguousarray(value).data)
    if alive is not None:
        alive.append(value)
    return (id(value), value.edge is not None) if isinstance(value, Tensor) else id(value)


def definition(function: Any) -> tuple[str, int] | None:
    """File and line where a function, or a module's `forward`, begins."""
    function = inspect.unwrap(getattr(function, "forward", function))
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return None if code is None else (code.co_filename, code.co_firstlineno)


class Reach:
    """Everything within reach of a function and its arguments.

    roots: modules and optimisers, by id, with the name that leads to them. cells: (name, function that reads a value), for all
    that may change without the roots' noticing. arrays: ids of NumPy arrays among the values, by their memory's owner.
    """

    def __init__(self, target: Callable, arguments: Iterable[Any] = ()):
        self.roots: dict[int, tuple[str, Module | Optimizer]] = {}
        self.cells: list[tuple[str, Callable[[], Any]]] = []
        self.arrays: set[int] = set()
        self._home = _package(type(target) if isinstance(target, Module) else target)
        self._names: set[str] = set()  # of attributes in the code within reach
        self._all = False  # whether the code reads attributes by names that only it knows
        self._seen: dict[Any, Any] = {}
        self._spaces: list[tuple[str, Any]] = []  # what has attributes: instances, classes, Python modules
        self._tensors: list[tuple[str, Tensor]] = []
        self._generators: list[tuple[str, Any]] = []
        if isinstance(target, types.FunctionType) and self._foreign(target):
            self._function(target)  # asked for, even if it is not the user's
        self._follow("", target)
        for value in arguments:
            self._follow("", value)
        self._follow_attributes()

    def values(self, alive: list | None = None) -> tuple:
        return tuple([frozen(read(), alive) for _, read in self.cells])

    def settings(self, alive: list | None = None) -> tuple:
        """Everything about the modules that their forward passes may depend on, tensors' values apart."""
        return tuple([_settings(m, alive) for m in self.modules()])

    def snapshot(self) -> list[tuple[str, Any]]:
        """All of it by name, with the state of random generators, to see whether a call of the function changes anything."""
        found = [(repr(name), frozen(read())) for name, read in self.cells]
        found += [(repr(name or type(m).__name__), _settings(m)) for name, m in self.roots.values() if isinstance(m, Module)]
        found += [(repr(name), repr(g.bit_generator.state)) for name, g in self._generators]
        found.append(("NumPy's random state", frozen(np.random.get_state(legacy=False)["state"])))
        return found

    def modules(self) -> list[Module]:
        return [value for _, value in self.roots.values() if isinstance(value, Module)]

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Every parameter, buffer and optimiser state within reach, by a readable name."""
        found: list[tuple[str, Tensor]] = []
        for name, root in self.roots.values():
            if isinstance(root, Module):
                prefix = f"{name}." if name else ""
                found += [(prefix + path, t) for path, t in (*root.named_parameters(), *root.named_buffers())]
            else:
                found += [("lr", group["lr"]) for group in root.groups]
                found += [(key, t) for state in root.state for key, t in state.items()]
                found.append(("steps", root.steps))
        return self._tensors + found

    # -- following ---------------------------------------------------------------------------------------------------
    def _follow(self, name: str, value: Any) -> None:
        """Note what `value` brings within reach."""
        if (isinstance(value, PLAIN) and not isinstance(value, type)) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._tensors.append((name, value))
        elif isinstance(value, np.ndarray):
            self.arrays.add(id(_owner(value)))
        elif isinstance(value, (np.random.Generator, np.random.RandomState)):
            self._generators.append((name, value if isinstance(value, np.random.Generator) else value._bit_generator))
        elif isinstance(value, Module):
            self._module(name, value)
        elif isinstance(value, Optimizer):
            self.roots[id(value)] = name, value
            self._follow(type(value).__name__, type(value))
            self.cells.append((name, lambda: {k: v for k, v in vars(value).items() if k not in ("state", "steps")}))
        elif isinstance(value, types.FunctionType):
            if not self._foreign(value):
                self._function(value)
        elif isinstance(value, _FUNCTIONS):
            self._wrapper(name, value)
        elif isinstance(value, dict):
            for key, v in value.items():
                self._follow(str(key), v)
        elif isinstance(value, _CONTAINERS):
            for i, v in enumerate(value):
                self._follow(f"{name}{i}", v)
        elif "__wrapped__" in getattr(value, "__dict__", ()):  # compiled functions, cached ones
            self._follow(name, value.__wrapped__)
        elif isinstance(value, (types.ModuleType, type)):
            if not self._foreign(value):
                self._spaces.append((name, value))
        elif hasattr(value, "__dict__") or hasattr(type(value), "__slots__"):
            self._spaces.append((name, value))
            self._follow(type(value).__name__, type(value))

    def _foreign(self, value: Any) -> bool:
        """Whether a function, class or Python module is not the user's: ours, the standard library's, an installed package's
        (unless the target comes from there too)."""
        package = _package(value)
        if package in _FOREIGN or package == self._home:
            return package in _FOREIGN
        return "-packages" in (getattr(sys.modules.get(package), "__file__", None) or "")

    def _wrapper(self, name: str, value: Any) -> None:
        """What stands around a function: methods, partials, properties."""
        if isinstance(value, functools.partial):
            self.cells.append((name, lambda: (value.args, value.keywords)))
            parts = [value.func, value.args, value.keywords]
        elif isinstance(value, types.MethodType):
            parts = [value.__self__, value.__func__]
        else:
            parts = [value.fget, value.fset] if isinstance(value, property) else [value.__func__]
        for part in parts:
            self._follow(name, part)

    def _module(self, name: str, root: Module) -> None:
        self.roots[id(root)] = name, root
        for path, part in root.named_modules():
            self._seen[id(part)] = part
            self._follow(type(part).__name__, type(part))
            ours = _package(type(part)) == "graftwork"  # whose forward passes read fixed attributes only
            for key, value in () if ours else part.__dict__.items():
                if key in ("_parameters", "_buffers", "_modules") or isinstance(value, (Module, Tensor, *PLAIN)):
                    continue  # `settings` sees to those
                where = ".".join(filter(None, (name, path, key)))
                self._follow(where, value)
                if not _fixed(value):
                    self.cells.append((where, functools.partial(part.__dict__.get, key)))

    def _function(self, function: types.FunctionType) -> None:
        """Its closure, defaults and globals, and the names of the attributes that it mentions."""
        cells: list[tuple[str, Callable[[], Any]]] = []
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            cells.append((name, functools.partial(_contents, cell)))
        if function.__defaults__ or function.__kwdefaults__:
            cells.append((function.__name__, lambda: (function.__defaults__, function.__kwdefaults__)))
        if function.__dict__:
            self._spaces.append((function.__name__, function))
        space = function.__globals__
        for code in _codes(function.__code__):
            constants = [c for c in code.co_consts if isinstance(c, str) and c.isidentifier()]  # for getattr(x, "name")
            self._names.update(code.co_names, constants)
            self._all = self._all or not _DYNAMIC.isdisjoint(code.co_names)
            if not {"environ", "getenv"}.isdisjoint(code.co_names):
                cells.append(("os.environ", lambda: dict(os.environ)))
            for name in _globals_of(code):
                if (id(space), name) not in self._seen and (name in space or name not in _builtins(space)):
                    self._seen[id(space), name] = space
                    cells.append((name, functools.partial(space.get, name)))
        for name, read in cells:
            self._follow(name, read())
        self.cells += cells

    def _follow_attributes(self) -> None:
        """Attributes lead to functions, which mention more attributes: until nothing new turns up."""
        followed: set[tuple[int, str]] = set()
        before = -1
        while before < len(followed):
            before = len(followed)
            for name, space in list(self._spaces):
                for key, value in self._attributes(space).items():
                    if (id(space), key) not in followed:
                        followed.add((id(space), key))
                        self._follow(f"{name}.{key}", value)
        self.cells += [(name, functools.partial(self._attributes, space)) for name, space in self._spaces]

    def _attributes(self, space: Any) -> dict[str, Any]:
        """The attributes that the code within reach mentions, and the methods that Python calls by itself."""
        every = self._all and not isinstance(space, (type, types.ModuleType))
        own = getattr(space, "__dict__", {})
        found = {k: v for k, v in own.items() if k in self._names or every or _implicit(k, v)}
        for kind in type(space).__mro__:
            for key in getattr(kind, "__slots__", ()):
                if key in self._names and isinstance(getattr(kind, key, None), types.MemberDescriptorType):
                    found[key] = getattr(space, key, None)
        return found


def _implicit(key: str, value: Any) -> bool:
    return isinstance(value, types.FunctionType) and (key == "forward" or (key.startswith("__") and key != "__init__"))


def _fixed(value: Any) -> bool:
    """Whether a module's attribute can change only by being set anew."""
    return isinstance(value, (Module, Tensor, *PLAIN)) or (isinstance(value, tuple) and all(map(_fixed, value)))


def _package(value: Any) -> str:
    """The outermost package that a function, class or Python module belongs to."""
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return str(name or "").partition(".")[0]


def _builtins(space: dict) -> dict:
    found = space.get("__builtins__", {})
    return found if isinstance(found, dict) else vars(found)


def _owner(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of those defined inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _globals_of(code: types.CodeType) -> list[str]:
    return list(dict.fromkeys(i.argval for i in dis.get_instructions(code) if i.opname.endswith(("_GLOBAL", "_NAME"))))


def _settings(module: Module, alive: list | None = None) -> tuple:
    found = []
    for path, part in module.named_modules():
        plain = [(k, frozen(v, alive)) for k, v in part.__dict__.items() if k not in ("_parameters", "_buffers", "_modules")]
        found.append((path, tuple(plain), tuple(part._modules)))
    return tuple(found)


__all__ = ["PLAIN", "Reach", "definition", "frozen"]
