"""The measurements of `bench.gpu_check`: kernels on a GPU beside PyTorch's (cuBLAS, cuDNN) in the same run; the clock and the
inputs that whole networks (`gpu_networks.py`) use too.

Inputs are random, never zeros. A time is the median of several batches of calls between two events. Every product and
convolution is compared with the peer's result, and the difference stands in the table.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

import graftwork as gw
from graftwork import kernels
from graftwork.kernels.cuda import launch
from graftwork.nn import functional as F

from .layers import NETWORKS, Call, build, calls_of, picture

GEMMS = (  # m, n, k, whether A and B are stored transposed
    (1024, 1024, 1024, "nn"), (2048, 2048, 2048, "nn"), (4096, 4096, 4096, "nn"), (8192, 8192, 8192, "nn"), (4096, 4096, 4096,
    "nt"),
    (4096, 4096, 4096, "tn"), (16, 4096, 4096, "nn"), (4096, 16, 4096, "nn"), (1, 4096, 25088, "nn"), (100352, 64, 576, "nn"),
    (256, 256, 65536, "nn"),
)  # fmt: skip
INT8 = ((1024, 1024, 1024), (4096, 4096, 4096), (8192, 8192, 8192), (25088, 512, 4608))  # m, n, k
DTYPES = ("float32", "tf32", "float16", "bfloat16")
CONV_BATCH = 32
COPY_BYTES = 1 << 29
LAUNCHES = 2000  # timed calls of the overhead measurement
TOUCH = 1 << 26  # elements of the memory-bound measurements


class OutOfTime(Exception):
    """What `Budget.limit` raises inside."""


class Budget:
    """Time that a part may take."""

    def __init__(self, seconds: float):
        self._end = time.perf_counter() + seconds

    def left(self) -> bool:
        return time.perf_counter() < self._end

    @contextlib.contextmanager
    def limit(self) -> Iterator[None]:
        """What runs inside is interrupted, between two steps of Python, when the time is up: for what cannot be foreseen, such
        as a compiler. Raises OutOfTime. Elsewhere than on a main thread nothing is interrupted."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(*given: Any) -> None:
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, max(self._end - time.perf_counter(), 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class Bench:
    """CuPy, PyTorch if it is there and sees the GPU, random arrays and a clock."""

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        self.torch: Any = None
        try:
            import torch

            if torch.cuda.is_available():
                self.torch = torch
        except ImportError:
            print("PyTorch is not installed: no peer", flush=True)
        self._rng = np.random.default_rng(0)
        self._pool = self._rng.standard_normal(1 << 20, np.float32)

    def supports(self, dtype: str) -> bool:
        """Whether arrays of a dtype can be made here (bfloat16 needs the package ml_dtypes)."""
        try:
            np.dtype(_storage(dtype))
        except TypeError:
            try:
                import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
            except ImportError:
                return False
        return True

    def random(self, shape: Iterable[int], dtype: str = "float32"):
        """A CuPy array of normal numbers (a million of them, repeated)."""
        shape = tuple(shape)
        size = math.prod(shape)
        values = np.resize(self._pool, size).reshape(shape)
        return self.cupy.asarray(values.astype(np.dtype(_storage(dtype))))

    def empty(self, shape: Iterable[int], dtype: str = "float32"):
        return launch.empty(tuple(shape), np.dtype(_storage(dtype)))

    def peer(self, array):
        """The same memory as a PyTorch tensor."""
        return self.torch.from_dlpack(array)

    def seconds(self, run: Callable[[], object], budget: float = 0.05) -> float:
        """Median seconds a call over five batches that take about `budget` together."""
        run()
        once = max(self._batch(run, 1), 1e-6)
        repeat = max(1, min(1000, int(budget / 5 / once)))
        return float(np.median([self._batch(run, repeat) for _ in range(5)]))

    def _batch(self, run: Callable[[], object], repeat: int) -> float:
        start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        start.record()
        for _ in range(repeat):
            run()
        end.record()
        end.synchronize()
        return self.cupy.cuda.get_elapsed_time(start, end) / 1e3 / repeat


def _storage(dtype: str) -> str:
    return "float32" if dtype == "tf32" else dtype


def _variant(dtype: str) -> str:
    return "tf32" if dtype == "tf32" else "cuda"


def difference(found, expected) -> float:
    """Norm of the difference over the norm of what the peer computed; both on the host."""
    a, b = (np.asarray(v, np.float64) for v in (found, expected))
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))


def summary_of(rows: list[dict], key: str = "ratio", what: str = "peer time over ours") -> dict[str, str]:
    """Geometric means of the ratios (peer's time over ours: above 1 we are faster), by dtype."""
    from .gpu_check import geometric_mean

    found = {}
    for dtype in dict.fromkeys(row.get("dtype", "all") for row in rows):
        mean = geometric_mean([row[key] for row in rows if row.get("dtype", "all") == dtype and row.get(key)])
        if mean is not None:
            found[f"geometric mean of {what}, {dtype}"] = f"{mean:.3f}"
    return found


def _row(flops: float, ours: float, peer: float | None, **more: Any) -> dict:
    row: dict[str, Any] = {**more, "us": ours * 1e6, "tflops": flops / ours / 1e12}
    if peer:
        row |= {"peer_us": peer * 1e6, "ratio": peer / ours}
    return row


def set_precision(bench: Bench, dtype: str) -> None:
    if bench.torch is not None:
        bench.torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        bench.torch.backends.cudnn.allow_tf32 = dtype == "tf32"
        bench.torch.backends.cudnn.benchmark = True


# -- products ----------------------------------------------------------------------------------------------------------


def gemm(bench: Bench, budget: Budget) -> dict:
    """Square, skinny and transposed products in every dtype."""
    rows, left_out = [], 0
    for dtype in DTYPES:
        if not bench.supports(dtype):
            continue
        set_precision(bench, dtype)
        for m, n, k, stored in GEMMS:
            if not budget.left():
                left_out += 1
                continue
            rows.append(_gemm_row(bench, m, n, k, stored, dtype))
    best: dict[str, float] = {}  # the highest rate that either of us reached
    for row in rows:
        best[row["dtype"]] = max(best.get(row["dtype"], 0.0), row["tflops"], row["tflops"] / row.get("ratio", math.inf))
    for row in rows:
        row["share_of_best"] = row["tflops"] / best[row["dtype"]]
    return {"rows": rows, "summary": summary_of(rows), "left_out": left_out}


def _gemm_row(bench: Bench, m: int, n: int, k: int, stored: str, dtype: str) -> dict:
    a = bench.random((k, m), dtype).transpose((1, 0)) if stored[0] == "t" else bench.random((m, k), dtype)
    b = bench.random((n, k), dtype).transpose((1, 0)) if stored[1] == "t" else bench.random((k, n), dtype)
    out = bench.empty((m, n), dtype)
    fn = kernels.get("matmul", device="cuda", variant=_variant(dtype))
    ours = bench.seconds(lambda: fn(a, b, out=out))
    peer, error = None, None
    if bench.torch is not None:
        ta, tb = bench.peer(a), bench.peer(b)
        result = bench.torch.empty((m, n), dtype=ta.dtype, device=ta.device)
        peer = bench.seconds(lambda: bench.torch.matmul(ta, tb, out=result))
        error = difference(out[:256].get(), result[:256].float().cpu().numpy())
    return _row(2.0 * m * n * k, ours, peer, dtype=dtype, shape=f"{m}x{n}x{k} {stored}", difference=error)


def int8(bench: Bench, budget: Budget) -> dict:
    """8-bit products, requantised, beside PyTorch's, which stop at the int32 sums. Compared with the reference, exactly."""
    rows, left_out = [], 0
    for m, n, k in INT8:
        if budget.left():
            rows.append(_int8_row(bench, m, n, k))
        else:
            left_out += 1
    return {"rows": rows, "summary": summary_of(rows), "left_out": left_out}


def _int8_row(bench: Bench, m: int, n: int, k: int) -> dict:
    x, w = (bench.cupy.asarray(np.random.default_rng(0).integers(-127, 128, s).astype(np.int8)) for s in ((m, k), (k, n)))
    scale = bench.cupy.asarray(np.full(n, 1e-3, np.float32))
    out = launch.empty((m, n), np.int8)
    attrs: dict[str, Any] = {"x_scale": 0.1, "x_zero_point": 0, "out_scale": 0.2, "out_zero_point": 3}
    attrs |= {"low": 0.0, "high": None, "dtype": "int8"}
    fn = kernels.get("quantized_matmul", device="cuda")
    ours = bench.seconds(lambda: fn(x, w, scale, out=out, **attrs))
    expected = np.empty((min(m, 16), n), np.int8)
    kernels.get("quantized_matmul", variant="reference")(x.get()[:16], w.get(), scale.get(), out=expected, **attrs)
    wrong = int((out.get()[:16] != expected).sum())
    peer = None
    if bench.torch is not None:
        a, b = bench.peer(x), bench.peer(w)
        peer = bench.seconds(lambda: bench.torch._int_mm(a, b))
    return _row(2.0 * m * n * k, ours, peer, dtype="int8", shape=f"{m}x{n}x{k}", wrong_values=wrong)


# -- convolutions ------------------------------------------------------------------------------------------------------


def conv_layers(batch: int) -> list[tuple[str, Call]]:
    """Every distinct convolution of the four networks, at a batch size, with the name of the first network that has it."""
    found: dict[Call, str] = {}
    for name in NETWORKS:
        model = build(name).to("cuda").eval()
        for call in calls_of(model, gw.tensor(picture(1), device="cuda")):
            if call.op == "conv2d":
                x, w = call.shapes[:2]
                plain = Call(call.op, ((batch, *x[1:]), w), call.attrs, (batch, *call.output[1:]))
                found.setdefault(plain, name)
    return [(name, call) for call, name in found.items()]


def conv(bench: Bench, budget: Budget) -> dict:
    """Every distinct convolution of the four networks: forward and both gradients."""
    rows, left_out = [], 0
    layers = conv_layers(CONV_BATCH)
    for dtype in ("float16", "float32", "bfloat16"):
        if not bench.supports(dtype):
            continue
        set_precision(bench, dtype)
        for network, call in layers:
            for part in ("forward", "input_grad", "weight_grad"):
                if not budget.left():
                    left_out += 1
                    continue
                rows.append(_conv_row(bench, network, call, part, dtype))
    summary = {}
    for part in ("forward", "input_grad", "weight_grad"):
        summary |= {f"{part}: {k}": v for k, v in summary_of([r for r in rows if r["pass"] == part]).items()}
    return {"rows": rows, "summary": summary, "left_out": left_out}


def _conv_row(bench: Bench, network: str, call: Call, part: str, dtype: str) -> dict:
    (xs, ws), attrs = call.shapes, {k: v for k, v in dict(call.attrs).items() if k != "activation"}
    x, w, g = (bench.random(shape, dtype) for shape in (xs, ws, call.output))
    op, inputs, shape, more = {
        "forward": ("conv2d", (x, w), call.output, {}), "input_grad": ("conv2d_input_grad", (g, w), xs, {"input_shape": xs}),
        "weight_grad": ("conv2d_weight_grad", (x, g), ws, {"kernel_shape": ws[:2]}),
    }[part]  # fmt: skip
    out = bench.empty(shape, dtype)
    fn = kernels.get(op, device="cuda", variant=_variant(dtype))
    ours = bench.seconds(lambda: fn(*inputs, out=out, **attrs, **more), 0.02)
    peer = error = None
    if bench.torch is not None and (run := _torch_conv(bench, x, w, g, part, attrs)) is not None:
        peer = bench.seconds(run, 0.02)
        whole = part == "weight_grad"  # of images the first one is enough, and quicker to bring to the host
        result = (run() if whole else run()[:1]).float().cpu().numpy()
        error = difference(out.get() if whole else out[:1].get(), result.transpose((2, 3, 1, 0) if whole else (0, 2, 3, 1)))
    flops = 2.0 * math.prod(call.output) * math.prod(ws[:3])
    return _row(flops, ours, peer, dtype=dtype, layer=str(call), network=network, difference=error) | {"pass": part}


def _torch_conv(bench: Bench, x, w, g, part: str, attrs: dict) -> Callable | None:
    """The peer's call on channels-last tensors; None for padding that differs between sides, which it cannot do in one call."""
    (top, bottom), (left, right) = attrs["padding"]
    if top != bottom or left != right:
        return None
    torch = bench.torch
    tx, tg = (bench.peer(v).permute(0, 3, 1, 2) for v in (x, g))
    tw = bench.peer(w).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    given = (list(attrs["stride"]), [top, left], list(attrs["dilation"]))
    if part == "forward":
        return lambda: torch.nn.functional.conv2d(tx, tw, None, *given, attrs["groups"])
    mask = [part == "input_grad", part == "weight_grad", False]
    position = 0 if part == "input_grad" else 1
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(tg, tx, tw, None, *given, False, [0, 0], attrs["groups"], mask)[position]


# -- memory-bound ops --------------------------------------------------------------------------------------------------


def memory(bench: Bench, budget: Budget) -> dict:
    """Bytes a second, read and written, beside a copy on the same GPU."""
    bandwidth = copy_bandwidth(bench)
    rows, left_out = [], 0
    for name, moved, run, peer in memory_cases(bench, TOUCH):
        if not budget.left():
            left_out += 1
            continue
        ours = bench.seconds(run)
        row: dict[str, Any] = {
            "op": name,
            "us": ours * 1e6,
            "gbytes_per_second": moved / ours / 1e9,
            "share_of_copy": moved / ours / bandwidth,
        }
        if bench.torch is not None and peer is not None:
            theirs = bench.seconds(peer)
            row |= {"peer_us": theirs * 1e6, "ratio": theirs / ours}
        rows.append(row)
    return {"rows": rows, "summary": {"copy, GB/s": f"{bandwidth / 1e9:.0f}", **summary_of(rows)}, "left_out": left_out}


def copy_bandwidth(bench: Bench) -> float:
    """Bytes read and written a second by the driver's own copy."""
    source, target = bench.random((COPY_BYTES // 4,)), bench.empty((COPY_BYTES // 4,))
    seconds = bench.seconds(
        lambda: target.data.copy_from_device_async(source.data, COPY_BYTES, bench.cupy.cuda.get_current_stream())
    )
    return 2 * COPY_BYTES / seconds


def memory_cases(bench: Bench, size: int) -> Iterator[tuple[str, float, Callable, Callable | None]]:
    """(name, bytes moved, our call, the peer's call)."""
    torch = bench.torch
    rows = size // 1024
    x, y, out = bench.random((rows, 1024)), bench.random((rows, 1024)), bench.empty((rows, 1024))
    row, small = bench.random((1024,)), bench.empty((1024,))
    tall, nbytes = bench.empty((rows,)), 4.0 * size
    tx, ty, trow = (bench.peer(v) for v in (x, y, row)) if torch is not None else (None, None, None)

    def ours(op: str, *inputs: Any, out: Any, **attrs: Any) -> Callable:
        fn = kernels.get(op, device="cuda")
        return lambda: fn(*inputs, out=out, **attrs)

    chain = (("multiply", (0, 1), ()), ("add", (3, 2), ()), ("relu", (4,), ()))
    yield "relu", 2 * nbytes, ours("relu", x, out=out), lambda: torch.relu(tx)
    yield "add", 3 * nbytes, ours("add", x, y, out=out), lambda: torch.add(tx, ty)
    yield "x * row + y, relu", 3 * nbytes, ours("chain", x, row, y, out=out, program=chain), lambda: torch.relu(tx * trow + ty)
    yield "sum of rows", nbytes, ours("sum", x, out=tall, axis=(1,), keepdims=False), lambda: tx.sum(1)
    yield "sum of columns", nbytes, ours("sum", x, out=small, axis=(0,), keepdims=False), lambda: tx.sum(0)
    yield "softmax", 2 * nbytes, ours("softmax", x, out=out, axis=1), lambda: torch.softmax(tx, 1)
    mean, rstd = bench.empty((rows,)), bench.empty((rows,))
    yield ("layer norm", 2 * nbytes, ours("layer_norm", x, row, row, out=(out, mean, rstd), epsilon=1e-5),
           lambda: torch.nn.functional.layer_norm(tx, (1024,), trow, trow, 1e-5))  # fmt: skip
    narrow, wide = x.reshape((size // 64, 64)), out.reshape((size // 64, 64))
    vector, m, v = bench.random((64,)), bench.empty((64,)), bench.empty((64,))
    tn, tv = (bench.peer(a) for a in (narrow, vector)) if torch is not None else (None, None)
    yield ("batch norm, training", 3 * nbytes, ours("batch_norm_train", narrow, vector, vector, out=(wide, m, v), epsilon=1e-3),
           lambda: torch.nn.functional.batch_norm(tn, None, None, tv, tv, True))  # fmt: skip
    yield (
        "transposition",
        2 * nbytes,
        ours("contiguous", x.transpose((1, 0)), out=out.reshape((1024, rows))),
        lambda: tx.t().contiguous(),
    )
    side = math.isqrt(size // 64 // 4)
    image, pooled = bench.random((4, side, side, 64)), bench.empty((4, side // 2, side // 2, 64))
    ti = bench.peer(image).permute(0, 3, 1, 2) if torch is not None else None
    window = {"window": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0))}
    yield ("max pooling 2x2", 5.0 * math.prod(image.shape), ours("max_pool2d", image, out=pooled, **window),
           lambda: torch.nn.functional.max_pool2d(ti, 2))  # fmt: skip
    state, mask = bench.cupy.asarray(np.array([1, 0], np.uint64)), launch.empty((rows, 1024), np.dtype(np.uint8))
    yield (
        "dropout",
        2.25 * nbytes,
        ours("dropout", x, state, out=(out, mask), rate=0.1),
        lambda: torch.nn.functional.dropout(tx, 0.1),
    )
    yield from byte_cases(bench, size, ours)
    lr = bench.cupy.asarray(np.asarray(1e-6, np.float32))
    attrs = {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "dampening": 0.0}
    yield "SGD with momentum", 5 * nbytes, ours("sgd_update", x, y, bench.random((rows, 1024)), lr, out=None, **attrs), None


def byte_cases(bench: Bench, size: int, ours: Callable) -> Iterator[tuple[str, float, Callable, Callable | None]]:
    """The same of what a network in bytes consists of beside products: `size` bytes, in images of 64 channels."""
    side = math.isqrt(size // 64 // 4)
    shape, half = (4, side, side, 64), (4, side // 2, side // 2, 64)
    pixels, torch = float(math.prod(shape)), bench.torch
    a, b = (bench.cupy.asarray(np.random.default_rng(i).integers(0, 256, shape).astype(np.uint8)) for i in range(2))
    table = bench.cupy.asarray(np.arange(256, dtype=np.uint8)[::-1].copy())
    out, small, real = launch.empty(shape, np.uint8), launch.empty(half, np.uint8), bench.random(shape)
    forms = {"x_scale": 0.02, "x_zero_point": 3, "out_scale": 0.05, "out_zero_point": 11}
    window = {"window": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0))}
    step = {"scale": 0.05, "zero_point": 128}
    t_real = bench.peer(real) if torch is not None else None
    yield ("float32 to bytes", 5 * pixels, ours("quantize", real, out=out, **step),
           lambda: torch.quantize_per_tensor(t_real, 0.05, 128, torch.quint8))  # fmt: skip
    yield "bytes to float32", 5 * pixels, ours("dequantize", a, out=bench.empty(shape), **step), None
    added = {**forms, "y_scale": 0.07, "y_zero_point": 200, "low": 0.0, "high": None}
    yield "sum of bytes", 3 * pixels, ours("quantized_add", a, b, out=out, **added), None
    yield "table of bytes", 2 * pixels, ours("byte_table", a, table, out=out), None
    yield "max pooling 2x2 of bytes", 1.25 * pixels, ours("quantized_max_pool2d", a, out=small, **window), None
    yield ("mean pooling 2x2 of bytes", 1.25 * pixels,
           ours("quantized_avg_pool2d", a, out=small, **window, **forms, count_padding=False), None)  # fmt: skip


# -- launches ----------------------------------------------------------------------------------------------------------


def launch_overhead(bench: Bench) -> list[dict]:
    """Host microseconds a call on arrays of 16 values: our kernel function, our op, the peer's op."""
    x = bench.random((4, 4))
    out, tensor = bench.empty((4, 4)), gw.tensor(x)
    fn = kernels.get("relu", device="cuda")
    runs: dict[str, Callable] = {"kernel function": lambda: fn(x, out=out), "op": lambda: F.relu(tensor)}
    if bench.torch is not None:
        peer = bench.peer(x)
        runs["PyTorch"] = lambda: bench.torch.relu(peer)
    rows = []
    for name, run in runs.items():
        for _ in range(min(100, LAUNCHES)):
            run()
        gw.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            run()
        host = (time.perf_counter() - start) / LAUNCHES
        gw.cuda.synchronize()
        rows.append({"call": name, "host_us": host * 1e6})
    return rows


def launch_part(bench: Bench, budget: Budget) -> dict:
    return {"rows": launch_overhead(bench)}


PARTS = {"gemm": gemm, "int8": int8, "conv": conv, "memory": memory, "launch": launch_part}
