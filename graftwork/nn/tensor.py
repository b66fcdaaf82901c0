"""The tensor: an array with a device, a dtype, and perhaps a place on the tape.

Operators and methods are thin: each calls an op of the table. Python numbers adopt the tensor's dtype; two tensors of
different dtypes are an error, never a silent upcast.
"""

from __future__ import annotations

import numbers
import weakref
from typing import Any

import numpy as np

from .. import cuda
from ..errors import DeviceError, DTypeError, GradientError, MissingDependency, ShapeError
from . import autograd
from .autograd import Leaf

FLOATS = {np.dtype(t) for t in ("float16", "float32", "float64")}  # and bfloat16, once it has been asked for
DTYPES = FLOATS | {np.dtype(t) for t in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}


class Tensor:
    """A multi-dimensional array that ops apply to.

    data: the raw NumPy (or CuPy) array, shared, not copied. Use `graftwork.tensor(...)` to make one.
    grad: the gradient collected by `backward()`, for tensors made with `requires_grad=True`.
    """

    __slots__ = ("__weakref__", "data", "edge", "written")
    __array_priority__ = 1000  # so that numpy_array * tensor reaches our operator

    def __init__(self, data, edge=None):
        self.data = data
        self.edge = edge
        self.written = 0  # number of the last in-place write, compared with the tape's

    # -- what it is ------------------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def device(self) -> str:
        return device_of(self.data)

    @property
    def requires_grad(self) -> bool:
        return self.edge is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and self.edge is None:
            if self.dtype not in FLOATS:
                raise DTypeError(f"only floating tensors can require a gradient, this one is {self.dtype}; use astype(...)")
            self.edge = Leaf()
            autograd.mark_set()
        elif not value and self.edge is not None:
            if type(self.edge) is not Leaf:
                raise GradientError("requires_grad can be switched off on leaves only; use detach() on a computed tensor")
            self.edge = None
            autograd.mark_set()

    @property
    def grad(self) -> Tensor | None:
        if type(self.edge) is not Leaf:
            return None
        if autograd.mode.trace is not None:
            autograd.mode.trace.grad_read(self)
        return self.edge.grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if type(self.edge) is not Leaf:
            raise GradientError("gradients are kept on leaves that require one; this tensor was computed or is constant")
        if value is not None and value.shape != self.shape:
            raise ShapeError(f"gradient of shape {value.shape} given for a tensor of shape {self.shape}")
        if autograd.mode.trace is not None:
            autograd.mode.trace.grad_set(self)
        self.edge.grad = value

    def __repr__(self) -> str:
        if autograd.mode.trace is not None:
            return f"tensor({self.dtype}{list(self.shape)}, being captured)"
        values = np.array2string(self.numpy(), precision=4, threshold=20, separator=", ", prefix="tensor(")
        device = "" if self.device == "cpu" else f", device={self.device!r}"
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"tensor({values}, {self.dtype}{device}{grad})"

    def __len__(self) -> int:
        if not self.data.shape:
            raise ShapeError("len() of a tensor without dimensions; use item() for its value")
        return self.data.shape[0]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    __hash__ = object.__hash__  # identity: `==` is elementwise

    # -- in and out ------------------------------------------------------------------------------------------------
    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: shared memory on the CPU, a copy from a GPU.

        Read-only where a compiled graph has computed ahead from the values (folded or packed weights): a write there would
        go unnoticed. `load_state_dict`, optimisers and other ops may write at any time.
        """
        if autograd.mode.trace is not None:
            autograd.mode.trace.needs_value("numpy()")
        if ahead and id(autograd.memory(self.data)) in ahead:
            view = self.data.view()
            view.flags.writeable = False
            return view
        return self.data if isinstance(self.data, np.ndarray) else self.data.get()

    def item(self) -> Any:
        """The value of a one-element tensor as a Python number."""
        if self.data.size != 1:
            raise ShapeError(f"item() needs exactly one element, this tensor has shape {self.shape}; index it first")
        if autograd.mode.trace is not None:
            autograd.mode.trace.needs_value("item()")
        return self.data.item()

    def tolist(self) -> Any:
        return self.numpy().tolist()

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    @property
    def __cuda_array_interface__(self) -> dict:
        """Only tensors on a GPU have it, so that others ask `hasattr` and get the truth."""
        if isinstance(self.data, np.ndarray):
            raise AttributeError("a tensor on the CPU has no __cuda_array_interface__; use numpy()")
        return self.data.__cuda_array_interface__

    def __dlpack__(self, **kwargs):
        if autograd.mode.trace is not None:
            autograd.mode.trace.needs_value("__dlpack__()")
        return self.data.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.data.__dlpack_device__()

    def _ones(self):
        return tensor(np.ones(self.shape, self.dtype), device=self.device).data

    def to(self, device: str, non_blocking: bool = False) -> Tensor:
        """This tensor on another device ("cpu", "cuda", "cuda:1"); itself if it is there already.

        non_blocking: do not wait for the copy. To a GPU, memory from `gw.cuda.pinned_empty` must then stay as it is until the
        GPU has come that far (other memory is copied first, and may change); from a GPU, the values are there after
        `gw.cuda.synchronize()`.
        """
        if device == self.device or (device == "cuda" and self.device == "cuda:0"):
            return self
        if self.edge is not None and autograd.mode.grad and type(self.edge) is not Leaf:
            raise GradientError("moving a computed tensor between devices is not recorded; detach() it or move its inputs")
        if autograd.mode.trace is not None:
            autograd.mode.trace.needs_value(f"to({device!r})")
        moved = Tensor(_place(self.data, device, non_blocking))
        moved.requires_grad = self.requires_grad
        return moved

    def astype(self, dtype) -> Tensor:
        """Converted to another dtype, as a recorded op."""
        dtype = as_dtype(dtype)
        return self if dtype == self.dtype else _F.cast(self, dtype=dtype.name)

    def detach(self) -> Tensor:
        """The same values without history."""
        return Tensor(self.data)

    def backward(self, grad: Tensor | None = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf it was computed from.

        grad: gradient of the final result with respect to this tensor; 1 by default, for scalars.
        retain_graph: keep the record for another backward pass. create_graph: make the gradients differentiable.
        """
        autograd.backward([self], autograd._seed_gradients([self], grad), retain_graph, create_graph)

    # -- arithmetic ------------------------------------------------------------------------------------------------
    def _operand(self, other) -> Tensor:
        """Another operand as a tensor: a Python number takes this tensor's dtype."""
        if isinstance(other, Tensor):
            return other
        if isinstance(other, (numbers.Number, np.generic)):
            if self.dtype not in FLOATS and isinstance(other, (float, np.floating)):
                raise DTypeError(
                    f"a float ({other}) with an {self.dtype} tensor: nothing is converted silently; "
                    "use tensor.astype('float32') first"
                )
            value = np.asarray(other, self.data.dtype)
            return Tensor(value) if type(self.data) is np.ndarray else tensor(value, device=self.device)
        if isinstance(other, np.ndarray):
            return tensor(other)
        raise DTypeError(f"operand is a {type(other).__qualname__}, expected a tensor, a NumPy array or a number")

    def __add__(self, other):
        return _F.add(self, other if type(other) is Tensor else self._operand(other))

    def __radd__(self, other):
        return _F.add(self._operand(other), self)

    def __sub__(self, other):
        return _F.subtract(self, other if type(other) is Tensor else self._operand(other))

    def __rsub__(self, other):
        return _F.subtract(self._operand(other), self)

    def __mul__(self, other):
        return _F.multiply(self, other if type(other) is Tensor else self._operand(other))

    def __rmul__(self, other):
        return _F.multiply(self._operand(other), self)

    def __truediv__(self, other):
        return _F.divide(self, other if type(other) is Tensor else self._operand(other))

    def __rtruediv__(self, other):
        return _F.divide(self._operand(other), self)

    def __pow__(self, other):
        if isinstance(other, (int, float)) and other == 2:
            return _F.square(self)
        return _F.power(self, self._operand(other))

    def __rpow__(self, other):
        return _F.power(self._operand(other), self)

    def __matmul__(self, other):
        return _F.matmul(self, self._operand(other))

    def __neg__(self):
        return _F.negative(self)

    def __abs__(self):
        return _F.abs(self)

    def __eq__(self, other):
        return _F.equal(self, self._operand(other))

    def __ne__(self, other):
        return _F.not_equal(self, self._operand(other))

    def __lt__(self, other):
        return _F.less(self, self._operand(other))

    def __le__(self, other):
        return _F.less_equal(self, self._operand(other))

    def __gt__(self, other):
        return _F.greater(self, self._operand(other))

    def __ge__(self, other):
        return _F.greater_equal(self, self._operand(other))

    def __getitem__(self, index):
        return _F.getitem(self, index)

    # -- shape and reductions ----------------------------------------------------------------------------------------
    def reshape(self, *shape) -> Tensor:
        return _F.reshape(self, *shape)

    def transpose(self, *axes) -> Tensor:
        return _F.transpose(self, *axes)

    @property
    def T(self) -> Tensor:  # noqa: N802 - as everywhere
        return _F.transpose(self)

    def sum(self, axis=None, keepdims: bool = False) -> Tensor:
        return _F.sum(self, axis, keepdims)

    def mean(self, axis=None, keepdims: bool = False) -> Tensor:
        return _F.mean(self, axis, keepdims)

    def var(self, axis=None, keepdims: bool = False) -> Tensor:
        return _F.var(self, axis, keepdims)

    def max(self, axis=None, keepdims: bool = False) -> Tensor:
        return _F.max(self, axis, keepdims)

    def min(self, axis=None, keepdims: bool = False) -> Tensor:
        return _F.min(self, axis, keepdims)

    def argmax(self, axis=None, keepdims: bool = False) -> Tensor:
        return _F.argmax(self, axis, keepdims)


autograd.Tensor = Tensor
ahead: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()  # memory that `protect` was told of, by id
_F: Any = None


def bind_operators(functional: Any) -> None:
    """Tell tensors where their operators are: `nn.functional` calls this, because ops are built on tensors."""
    global _F
    _F = functional


def protect(t: Tensor) -> None:
    """Something has been computed ahead from the values of `t`: arrays that others hold become read-only, so that a write
    that nobody could notice raises. Ops, `assign` and `load_state_dict` write through the tensor, as before."""
    owner, given_out = autograd.memory(t.data), t.data
    if id(owner) in ahead:
        return
    t.data = given_out.view()  # nobody else has this one
    given_out.flags.writeable = owner.flags.writeable = False
    ahead[id(owner)] = owner


def device_of(array) -> str:
    """ "cpu" for a NumPy array, "cuda:N" for a CuPy one."""
    if isinstance(array, np.ndarray):
        return "cpu"
    device = array.device
    return device if isinstance(device, str) else f"cuda:{device.id}"


def device_number(device: str) -> int:
    """The number of a GPU: 1 for "cuda:1", 0 for "cuda"."""
    return int(device.partition(":")[2] or 0)


def host(array) -> np.ndarray:
    """The values of an array as a NumPy array: itself, or a copy from a GPU."""
    return array if isinstance(array, np.ndarray) else array.get()


def as_dtype(dtype) -> np.dtype:
    """A dtype from its name, type or np.dtype; DTypeError names what is supported."""
    if getattr(dtype, "name", dtype) == "bfloat16":
        return _bfloat16()
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found is not None and not found.isnative:
        found = found.newbyteorder("=")
    if found not in DTYPES:
        raise DTypeError(f"unknown dtype {dtype!r}; supported: {', '.join(sorted(d.name for d in DTYPES))}")
    return found


def _bfloat16() -> np.dtype:
    """NumPy's bfloat16, which the package ml_dtypes brings; loaded when it is first asked for."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingDependency("bfloat16 arrays need the package ml_dtypes; install it, or use float16") from error
    found = np.dtype(ml_dtypes.bfloat16)
    FLOATS.add(found)
    DTYPES.add(found)
    return found


def tensor(array, dtype=None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Make a tensor from numbers, nested lists, a NumPy or CuPy array, DLPack, `__array_interface__` or its CUDA form.

    dtype: kept from an array unless given; Python floats become float32, Python ints int64.
    device: "cpu" (default) or "cuda[:n]". An array that is there with the right dtype is shared, not copied.
    Raises DTypeError for dtypes and objects without a numeric array form, DeviceError for an unusable device.
    """
    if isinstance(array, Tensor):
        if autograd.mode.trace is not None:  # has no values yet
            result = array.detach() if dtype is None else array.detach().astype(dtype)
            result.requires_grad = requires_grad
            return result
        array = array.data
    has_dtype = any(hasattr(array, name) for name in ("dtype", "__array_interface__", "__cuda_array_interface__", "__dlpack__"))
    values = _as_array(array)
    if dtype is None and not has_dtype and values.dtype == np.float64:
        dtype = "float32"
    dtype = as_dtype(values.dtype if dtype is None else dtype)
    values = values.astype(dtype, copy=False)
    result = Tensor(_place(values, device))
    result.requires_grad = requires_grad
    return result


def _as_array(value):
    if isinstance(value, np.ndarray):
        return np.asarray(value)  # strips subclasses
    if type(value).__module__.partition(".")[0] == "cupy":
        return value
    if hasattr(value, "__cuda_array_interface__") or _on_gpu(value):
        return cuda.adopt(value)
    try:
        if hasattr(value, "__dlpack__") and not isinstance(value, np.generic):
            return np.from_dlpack(value)
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError, BufferError) as error:
        raise DTypeError(f"cannot make a tensor from a {type(value).__qualname__}: {error}; expected numbers, nested lists "
                         "of equal length, or an array") from error  # fmt: skip


def _on_gpu(value) -> bool:
    """Whether an object that speaks DLPack holds memory of a GPU (kDLCUDA, kDLCUDAManaged)."""
    return hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] in (2, 13)


def _place(values, device: str | None, non_blocking: bool = False):
    here = device_of(values)
    if device is None or device == here:
        return values
    kind, _, number = device.partition(":")
    if kind == "cpu" and not number:
        return cuda.fetch(values, non_blocking)
    if kind != "cuda" or not (number == "" or number.isdigit()):
        raise DeviceError(f'unknown device {device!r}; expected "cpu", "cuda" or "cuda:<number>"')
    return cuda.place(values, int(number or 0), non_blocking)
