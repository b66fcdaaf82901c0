"""From an op call to launches.

A kernel module describes an op as a pure function of shapes: `describe(b, *views, out=view, **attrs)`, where `b` is a Builder
that collects steps (source file, macros, grid, block, arguments) and scratch arrays. `@kernel` turns it into what the registry
wants, `fn(*arrays, out=..., **attrs)`: the steps are kept by shapes, strides, dtypes, alignments and attributes, so that a
second call of the same form only fills in pointers. A Machine runs steps: `Gpu` through CuPy here, an emulator in the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...errors import DeviceError, DeviceMemoryError, DTypeError, KernelError
from . import loader
from .loader import Source
from .tensor_map import TensorMap, encode

VECTOR = 16  # bytes: the widest access of one thread
WORKSPACE = 256  # bytes: what scratch arrays of a bound call are aligned to, as the driver's own allocations are
_GRID = (2**31 - 1, 65535, 65535)


class View(NamedTuple):
    """An array as a description sees it: a slot (input, output or scratch) and its form. Strides and offset in elements."""

    slot: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype
    alignment: int  # of the first element's address, at most 16
    offset: int = 0

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dense(self) -> bool:
        """Row-major without gaps."""
        if self.size == 0:
            return True
        expected = 1
        for n, s in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n != 1 and s != expected:
                return False
            expected *= n
        return True

    def reshape(self, *shape: int) -> View:
        """The same dense memory under another shape."""
        if math.prod(shape) != self.size or not self.dense:
            raise KernelError(f"a view of shape {self.shape}, strides {self.strides} cannot be taken as {shape}")
        return self._replace(shape=shape, strides=dense_strides(shape))

    def moved(self, offset: int, shape: Sequence[int], strides: Sequence[int]) -> View:
        """Other elements of the same array, the first one `offset` elements further on."""
        address = (self.offset + offset) * self.dtype.itemsize
        alignment = math.gcd(self.alignment, address) if address else self.alignment
        return self._replace(shape=tuple(shape), strides=tuple(strides), offset=self.offset + offset, alignment=alignment)


class Pointers(NamedTuple):
    """A table of pointers, passed by value: one a view, in order, then null pointers up to `length`."""

    views: tuple[View, ...]
    length: int

    def addresses(self, pointers: dict[int, int]) -> np.ndarray:
        found = [_address(v, pointers) for v in self.views]
        return np.array(found + [0] * (self.length - len(found)), np.uint64)


class Step(NamedTuple):
    """One launch. Arguments are Views (passed as pointers), None (a null pointer), Pointers, NumPy scalars,
    structures (np.void, bytes) and TensorMaps of Views. cluster: blocks of a cluster, which the kernel itself declares.
    made_of: slots that alone decide what the step writes, where the description says so (`Builder.made_of`)."""

    source: Source
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    arguments: tuple[Any, ...]
    cluster: int = 1
    made_of: tuple[int, ...] | None = None


class Scratch(NamedTuple):
    """An array that a description needs for itself: it holds garbage at first. made_of: as in Step."""

    slot: int
    shape: tuple[int, ...]
    dtype: np.dtype
    made_of: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Description(NamedTuple):
    """All steps of one call, in order, and the scratch arrays between them."""

    steps: tuple[Step, ...]
    scratch: tuple[Scratch, ...]


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


class Builder:
    """Collects the steps of one op call. `processors`: how many multiprocessors the device has, for sharing out work; `chip`:
    its name and the driver's version, by which tuned choices are kept ("": none are looked up)."""

    def __init__(self, slots: int, capability: int, processors: int, chip: str = ""):
        self.capability, self.processors, self.chip = capability, processors, chip
        self.steps: list[Step] = []
        self.scratch: list[Scratch] = []
        self._slots = itertools.count(slots)
        self._made_of: tuple[int, ...] | None = None

    @contextlib.contextmanager
    def made_of(self, *views: View | None) -> Iterator[None]:
        """Steps and scratch arrays added inside depend on nothing but these views, which are inputs or were made of such.

        Where those inputs stay as they are (weights, in a compiled graph) such steps run once, not at every replay."""
        before, self._made_of = self._made_of, tuple(v.slot for v in views if v is not None)
        try:
            yield
        finally:
            self._made_of = before

    def launch(self, file: str, kernel: str, defines: dict[str, Any], grid, block, *arguments: Any, shared: int = 0,
               cluster: int = 1) -> None:  # fmt: skip
        """Add a launch. grid, block: an int or up to three. An empty grid adds nothing."""
        grid, block = _three(grid), _three(block)
        if 0 in grid:
            return
        if any(g > most for g, most in zip(grid, _GRID, strict=True)) or math.prod(block) > 1024:
            raise KernelError(f"{kernel}: grid {grid} and block {block} exceed what a GPU takes ({_GRID}, 1024 threads)")
        if self._made_of is not None:
            self._check_made_of(kernel, arguments)
        source = Source(file, tuple((k, str(v)) for k, v in defines.items()))
        self.steps.append(Step(source, kernel, grid, block, shared, arguments, cluster, self._made_of))

    def _check_made_of(self, kernel: str, arguments: Sequence[Any]) -> None:
        known = {*(self._made_of or ()), *(s.slot for s in self.scratch if s.made_of is not None)}
        if foreign := sorted({a.slot for a in arguments if isinstance(a, View)} - known):
            raise KernelError(
                f"{kernel} is said to depend on arrays {sorted(self._made_of or ())} alone, but it is given {foreign} as well; "
                "launch it outside of made_of, or name all views that it reads"
            )

    def empty(self, shape: Sequence[int], dtype) -> View:
        """A scratch array, row-major and aligned."""
        made = Scratch(next(self._slots), tuple(shape), np.dtype(dtype), self._made_of)
        self.scratch.append(made)
        return View(made.slot, made.shape, dense_strides(made.shape), made.dtype, VECTOR)

    def dense(self, view: View) -> View:
        """The view itself if it is row-major without gaps, otherwise a copy that is."""
        if view.dense:
            return view
        from .copies import describe_copy

        made = self.empty(view.shape, view.dtype)
        describe_copy(self, view, made)
        return made

    def finish(self) -> Description:
        return Description(tuple(self.steps), tuple(self.scratch))


def _three(value) -> tuple[int, int, int]:
    values = (int(value),) if isinstance(value, (int, np.integer)) else tuple(int(v) for v in value)
    return (*values, *(1,) * (3 - len(values)))  # type: ignore[return-value]


# -- element types -----------------------------------------------------------------------------------------------------

C_TYPES = {
    "float16": "half_t", "bfloat16": "bf16_t", "float32": "float", "float64": "double", "bool": "bool", "int8": "i8",
    "int16": "i16", "int32": "i32", "int64": "i64", "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
}  # fmt: skip


def c_type(dtype: np.dtype) -> str:
    """The name of a dtype in the kernels' sources."""
    try:
        return C_TYPES[dtype.name]
    except KeyError:
        raise DTypeError(f"no CUDA kernel for dtype {dtype}; supported: {', '.join(C_TYPES)}") from None


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def vector_width(*views: View, runs: Sequence[int] = ()) -> int:
    """How many neighbouring elements one access may take: 16 bytes of the widest dtype, if every address and run allows it.

    runs: numbers of elements, such as the length of a row, that the width must divide.
    """
    width = VECTOR // max(v.dtype.itemsize for v in views)
    while width > 1 and (
        any(v.alignment % (width * v.dtype.itemsize) for v in views) or any(run % width for run in runs)
    ):
        width //= 2
    return width


# -- structures passed by value ----------------------------------------------------------------------------------------


def structure(fields: Sequence[tuple[str, str, Any]]) -> np.void:
    """A C structure by value, laid out as the compiler does: (name, NumPy type, value) each."""
    return _filled(tuple((name, kind, np.shape(value)) for name, kind, value in fields), [v for _, _, v in fields])


@functools.lru_cache(256)
def _layout(fields) -> np.dtype:
    return np.dtype([(name, kind, shape) if shape else (name, kind) for name, kind, shape in fields], align=True)


def _filled(fields, values) -> Any:
    made = np.zeros((), _layout(fields))
    for (name, _, _), value in zip(fields, values, strict=True):
        made[name] = value
    return made[()]


# -- machines ----------------------------------------------------------------------------------------------------------


class Machine(Protocol):
    """What runs steps: capability (10 * major + minor), processors (multiprocessors), and two methods."""

    capability: int
    processors: int

    @property
    def chip(self) -> str:
        """As in Builder."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any: ...

    def run(self, step: Step, pointers: dict[int, int]) -> None: ...

    def bind(self, step: Step, pointers: dict[int, int]) -> Callable[[], None]:
        """All that can be done once (compiling, tensor maps, packing); the result launches the step."""


stand_in: Machine | None = None  # tests put an emulator here; it takes NumPy arrays


class Gpu:
    """One CUDA device through CuPy: its memory pool, its current stream, the driver's launch."""

    def __init__(self, number: int):
        import cupy

        self.number, self._cupy = number, cupy
        self.device = cupy.cuda.Device(number)
        self.capability = int(self.device.compute_capability)
        self.processors = self.device.attributes["MultiProcessorCount"]
        self._launch = cupy.cuda.driver.launchKernel
        self._stream = cupy.cuda.get_current_stream

    @functools.cached_property
    def chip(self) -> str:
        runtime = self._cupy.cuda.runtime
        driver, name = runtime.driverGetVersion(), runtime.getDeviceProperties(self.number)["name"].decode()
        return f"{name} (driver {driver // 1000}.{driver % 1000 // 10})"

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        return empty(shape, dtype, self.number)

    def run(self, step: Step, pointers: dict[int, int]) -> None:
        self.bind(step, pointers)()

    def bind(self, step: Step, pointers: dict[int, int]) -> Callable[[], None]:
        handle = loader.function(self.number, step.source, step.kernel, step.shared)
        packed = pack(step.arguments, pointers)
        form = (handle, *step.grid, *step.block, step.shared)
        return lambda: self._launch(*form, self._stream().ptr, packed.address, 0)


class Packed:
    """Arguments as the driver wants them: an array of addresses. Keeps alive what they point to."""

    __slots__ = ("_kept", "_pointers", "address")

    def __init__(self, values: list[np.ndarray]):
        self._kept = values
        self._pointers = (ctypes.c_void_p * max(len(values), 1))(*(v.ctypes.data for v in values))
        self.address = ctypes.addressof(self._pointers)


def pack(arguments: Sequence[Any], pointers: dict[int, int]) -> Packed:
    """Arguments with every View replaced by its address."""
    values = []
    for a in arguments:
        if isinstance(a, View):
            a = np.uint64(_address(a, pointers))
        elif isinstance(a, TensorMap):
            a = encode(a, _address(a.array, pointers))
        elif isinstance(a, Pointers):
            a = a.addresses(pointers)
        elif a is None:  # a null pointer
            a = np.uint64(0)
        values.append(np.frombuffer(a, np.uint8) if isinstance(a, bytes) else np.asarray(a))
    return Packed(values)


def _address(view: View, pointers: dict[int, int]) -> int:
    return pointers[view.slot] + view.offset * view.dtype.itemsize


@functools.cache
def gpu(number: int) -> Gpu:
    """The machine for a device number."""
    return Gpu(number)


def empty(shape, dtype, number: int | None = None):
    """An uninitialised CuPy array. Raises DeviceMemoryError, saying what was asked for, what is held and what is free."""
    import cupy

    try:
        if number is None:
            return cupy.empty(shape, dtype)
        with cupy.cuda.Device(number):
            return cupy.empty(shape, dtype)
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise memory_error(shape, dtype) from error


def memory_error(shape, dtype) -> DeviceMemoryError:
    """What to raise when CuPy has found no room for an array."""
    import cupy

    free, total = cupy.cuda.runtime.memGetInfo()
    pool = cupy.get_default_memory_pool()
    sizes, dtype = tuple(np.atleast_1d(np.asarray(shape, np.int64)).tolist()), np.dtype(dtype)
    asked = math.prod(sizes) * dtype.itemsize
    return DeviceMemoryError(explain_memory(asked, sizes, dtype, pool.used_bytes(), pool.total_bytes(), free, total))


def explain_memory(asked: int, shape, dtype, used: int, pooled: int, free: int, total: int) -> str:
    """The sentence for a device that is full."""
    mib = 1 / (1 << 20)
    return (
        f"no room for an array of {'x'.join(map(str, shape))} {dtype} ({asked * mib:.0f} MiB) on the GPU: this process uses "
        f"{used * mib:.0f} MiB and keeps {(pooled - used) * mib:.0f} MiB for reuse, {free * mib:.0f} of {total * mib:.0f} MiB "
        "are free. Use a smaller batch, or free tensors you no longer need"
    )


def machine_of(arrays: Sequence[Any]) -> Machine:
    """The machine that holds these arrays. Raises DeviceError for arrays of the host or of two devices."""
    numbers = set()
    for a in arrays:
        if isinstance(a, np.ndarray):
            numbers.add(-1)
        else:
            numbers.add(a.device.id)
    if numbers == {-1} and stand_in is not None:
        return stand_in
    if -1 in numbers or len(numbers) > 1:
        places = ", ".join("cpu" if isinstance(a, np.ndarray) else f"cuda:{a.device.id}" for a in arrays)
        raise DeviceError(f"a CUDA kernel needs all arrays on one GPU, these are on {places}; move them with x.to(...)")
    number = numbers.pop()
    require_current(number)
    return gpu(number)


def require_current(number: int) -> None:
    """Raise DeviceError unless GPU `number` is the one that launches go to."""
    import cupy

    if (current := cupy.cuda.runtime.getDevice()) != number:
        raise DeviceError(
            f"arrays on cuda:{number}, while the current GPU is {current}; put the calls into "
            f"`with graftwork.cuda.device({number}):`"
        )


def address_of(array) -> int:
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def view_of(slot: int, array) -> View:
    """An array's form. DTypeError for strides that are not whole elements."""
    size = array.dtype.itemsize
    if any(s % size for s in array.strides):
        raise DTypeError(
            f"an array of {array.dtype} with strides of {array.strides} bytes: they must be multiples of {size}; copy it first"
        )
    address = address_of(array)
    if address % size:
        raise DTypeError(f"an array of {array.dtype} at address {address:#x}, which is not a multiple of {size}; copy it first")
    return View(
        slot, tuple(array.shape), tuple(s // size for s in array.strides), array.dtype, math.gcd(address, VECTOR) or VECTOR
    )


# -- kernels -----------------------------------------------------------------------------------------------------------


class Bound:
    """A kernel call on arrays that keep their places, for replaying: described once, launched any number of times.

    steady: positions of the inputs whose values stay as well. What a description makes of those alone (`Builder.made_of`) is
    prepared once, into `prepared` bytes that nothing else may write to. The `workspace` bytes of all other scratch arrays
    may serve other calls in between. Both are the caller's to give (`place`), so that a launch allocates nothing and may be
    recorded into a CUDA graph.
    """

    def __init__(self, description: Description, arrays: Sequence[Any], machine: Machine, steady: Collection[int] = ()):
        self._description, self._machine = description, machine
        self._kept = arrays  # their addresses are in use
        self._offsets: dict[int, int] = {}
        self._steady = set(steady)
        self.workspace = self.prepared = 0
        for s in description.scratch:
            size = ceil_div(s.nbytes, WORKSPACE) * WORKSPACE
            if self._is_steady(s):
                self._steady.add(s.slot)
                self._offsets[s.slot], self.prepared = self.prepared, self.prepared + size
            else:
                self._offsets[s.slot], self.workspace = self.workspace, self.workspace + size
        self._preparations: list[Callable[[], None]] = []
        self._launches: list[Callable[[], None]] = []

    def _is_steady(self, made: Scratch | Step) -> bool:
        return made.made_of is not None and self._steady.issuperset(made.made_of)

    def place(self, workspace: int, prepared: int) -> None:
        """Bind all steps, with the scratch arrays at two addresses that are multiples of WORKSPACE. Compiles what is new."""
        pointers = {i: address_of(a) for i, a in enumerate(self._kept)}
        for slot, offset in self._offsets.items():
            pointers[slot] = offset + (prepared if slot in self._steady else workspace)
        self._preparations, self._launches = [], []
        for step in self._description.steps:
            bound = self._preparations if self._is_steady(step) else self._launches
            bound.append(self._machine.bind(step, pointers))

    def prepare(self) -> None:
        """Make what depends on steady inputs alone; again when those have been written."""
        for launch in self._preparations:
            launch()

    def launch(self) -> None:
        """Launch all other steps in order on the current stream."""
        for launch in self._launches:
            launch()


def kernel(describe: Callable) -> Callable:
    """The registry's function `fn(*arrays, out=..., **attrs)` from `describe(builder, *views, out=..., **attrs)`."""
    kept: dict[Any, Description] = {}

    def described(arrays: tuple, out: Any, attrs: dict[str, Any]) -> tuple[Description, tuple, Machine]:
        many = isinstance(out, tuple)
        outs = out if many else () if out is None else (out,)
        everything = (*arrays, *outs)
        machine = machine_of(everything)
        views = tuple([view_of(i, a) for i, a in enumerate(everything)])
        form = (views, len(arrays), machine.capability, machine.processors, freeze(attrs))
        description = kept.get(form)
        if description is None:
            description = _describe(describe, views, len(arrays), many, machine, attrs)
            if len(kept) >= 4096:  # a program with ever new shapes must not grow without end
                kept.clear()
            kept[form] = description
        return description, everything, machine

    @functools.wraps(describe)
    def fn(*arrays: Any, out: Any = None, **attrs: Any) -> None:
        run(*described(arrays, out, attrs))

    fn.describe = describe  # type: ignore[attr-defined]
    def bind(*arrays: Any, out: Any = None, steady: Collection[int] = (), **attrs: Any) -> Bound:
        return Bound(*described(arrays, out, attrs), steady)

    fn.bind = bind  # type: ignore[attr-defined]
    return fn


def elementwise(describe: Callable) -> Callable:
    """As `kernel`, of an op that reads no more than element i of its inputs before it writes element i of the output: a planner
    may give the output the memory of an input of as many bytes."""
    fn = kernel(describe)
    fn.elementwise = True  # type: ignore[attr-defined]
    return fn


def _describe(describe, views, inputs: int, many: bool, machine: Machine, attrs) -> Description:
    builder = Builder(len(views), machine.capability, machine.processors, machine.chip)
    outs = views[inputs:]
    given = outs if many else outs[0] if outs else None
    describe(builder, *views[:inputs], out=given, **attrs)
    return builder.finish()


def run(description: Description, arrays: Sequence[Any], machine: Machine) -> None:
    """Fill in the pointers of a description and launch its steps in order."""
    pointers = {i: address_of(a) for i, a in enumerate(arrays)}
    scratch = [machine.empty(s.shape, s.dtype) for s in description.scratch]
    for s, made in zip(description.scratch, scratch, strict=True):
        pointers[s.slot] = address_of(made)
    for step in description.steps:
        machine.run(step, pointers)


def freeze(value: Any) -> Any:
    """Attributes as a dictionary's key: slices and dictionaries become tuples."""
    if isinstance(value, dict):
        return tuple([(k, freeze(v)) for k, v in value.items()])
    if isinstance(value, (tuple, list)):
        return tuple([freeze(v) for v in value])
    return ("slice", value.start, value.stop, value.step) if isinstance(value, slice) else value
