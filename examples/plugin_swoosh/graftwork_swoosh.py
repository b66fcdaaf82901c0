"""swoosh(x; beta) = x * sigmoid(beta * x): an op, its gradient, a CPU kernel and CUDA C++, as one small plugin."""

import numpy as np

from graftwork.nn.functional import sigmoid
from graftwork.nn.op import Op, Sample
from graftwork.plugins import hookimpl

CUDA = """extern "C" __global__ void swoosh(const float* x, float* y, float beta, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] / (1 + expf(-beta * x[i]));
}"""


def vjp(g, out, x, beta):
    s = sigmoid(x * beta)
    return (g * s * (1.0 + x * beta * (1.0 - s)),)


def cpu(x, *, out, beta):
    np.multiply(x, 0.5 + 0.5 * np.tanh(0.5 * beta * x), out=out)  # the sigmoid, without overflow


def cuda(x, *, out, beta):
    import cupy  # compiles at the first call and keeps the result on disk

    arguments = (cupy.ascontiguousarray(x), out, np.float32(beta), np.int64(x.size))
    cupy.RawKernel(CUDA, "swoosh")((x.size // 256 + 1,), (256,), arguments)


def samples(rng):
    yield Sample((rng.standard_normal((3, 4)),), {"beta": 1.5})


swoosh = Op("swoosh", infer=lambda x, beta: (x.shape, x.dtype), vjp=vjp, samples=samples)


@hookimpl
def register_ops(register):
    register(swoosh)


@hookimpl
def register_kernels(register):
    register("swoosh", "cpu", "numpy", cpu, dtypes=("float32", "float64"))
    register("swoosh", "cuda", "simple", cuda, dtypes=("float32",))
