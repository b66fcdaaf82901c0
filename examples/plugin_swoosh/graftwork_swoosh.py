"""swoosh(x; beta) = x * sigmoid(beta * x): a whole op in one file, with a NumPy kernel for the CPU and CUDA C++ for the GPU."""

import numpy as np

from graftwork.errors import DTypeError
from graftwork.nn.functional import sigmoid
from graftwork.nn.op import Op, Sample
from graftwork.plugins import hookimpl

CUDA = r"""
template <typename T> __global__ void swoosh(const T* x, T* y, T beta, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] / (T(1) + exp(-beta * x[i]));
}
"""


def infer(x, beta):
    if x.dtype not in (np.float32, np.float64):
        raise DTypeError(f"swoosh: got dtype {x.dtype}, expected float32 or float64; use x.astype('float32')")
    return x.shape, x.dtype


def vjp(g, out, x, beta):
    s = sigmoid(x * beta)
    return (g * s * (1.0 + x * beta * (1.0 - s)),)


def cpu(x, *, out, beta):
    np.multiply(x, 0.5 + 0.5 * np.tanh(0.5 * beta * x), out=out)  # the sigmoid, without overflow


def cuda(x, *, out, beta):
    import cupy  # NVRTC compiles CUDA at the first call; CuPy keeps the result on disk

    names = {"f": "swoosh<float>", "d": "swoosh<double>"}
    module = cupy.RawModule(code=CUDA, options=("-std=c++17",), name_expressions=tuple(names.values()))
    arguments = (cupy.ascontiguousarray(x), out, x.dtype.type(beta), np.int64(x.size))
    if x.size:
        module.get_function(names[x.dtype.char])((-(-x.size // 256),), (256,), arguments)


def samples(rng):
    for shape in ((3, 4), (2, 3, 5), (), (0, 3)):
        yield Sample((rng.standard_normal(shape),), {"beta": 1.5})


SWOOSH = Op("swoosh", infer=infer, vjp=vjp, samples=samples, doc="x * sigmoid(beta * x)")


def swoosh(x, beta=1.0):
    """x * sigmoid(beta * x), elementwise (Ramachandran, Zoph and Le 2017, there called Swish)."""
    return SWOOSH(x, beta=float(beta))


@hookimpl
def register_ops(register):
    register(SWOOSH)


@hookimpl
def register_kernels(register):
    register("swoosh", "cpu", "numpy", cpu, dtypes=("float32", "float64"))
    register("swoosh", "cuda", "simple", cuda, dtypes=("float32", "float64"))
