"""Registers, shared memory and spills of every CUDA kernel on every architecture: `python -m bench.cuda_resources`.

Needs NVRTC, no GPU. The kernels' own launch code is asked, for the shapes that networks consist of, which sources it would
launch;
each is compiled and the assembler's report is kept in results/cuda_resources.md and .json.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from graftwork import kernels
from graftwork.kernels.cuda import launch, loader, nvrtc
from graftwork.kernels.cuda.launch import Step
from graftwork.nn.op import OPS

from .common import write, write_text

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
DTYPES = ("float32", "float16", "int8")


class Recorder:
    """A machine that runs nothing and remembers the steps it was given."""

    def __init__(self, architecture: str):
        self.capability, self.processors = int(re.sub(r"\D", "", architecture)), 132
        self.steps: list[Step] = []
        self.chip = ""  # nothing tuned

    def empty(self, shape, dtype) -> np.ndarray:
        return np.empty(shape, dtype)  # never touched, so it costs address space only

    def run(self, step: Step, pointers: dict[int, int]) -> None:
        self.steps.append(step)


class Call(NamedTuple):
    op: str
    inputs: tuple[tuple[tuple[int, ...], str], ...]  # shape and dtype
    attrs: dict[str, Any]
    variant: str = "cuda"


def _program(dtype: str) -> tuple:
    """A chain with every elementwise op once, but for sine and cosine, which keep large arguments' digits in local memory."""
    from graftwork.kernels.cuda.elementwise import BINARY, UNARY

    attrs = {"leaky_relu": {"alpha": 0.1}, "leaky_relu_grad": {"alpha": 0.1}, "elu": {"alpha": 1.0},
        "gelu": {"approximate": False},
             "clip": {"low": -2.0, "high": 2.0}, "cast": {"dtype": dtype}}  # fmt: skip
    steps: list[tuple] = []
    last = 0

    def add(name: str, *operands: int) -> int:
        steps.append((name, operands, tuple(sorted(attrs.get(name, {}).items()))))
        return 1 + len(steps)

    truth = add("greater", 0, 1)
    for name in UNARY.split():
        if name in ("sin", "cos"):
            continue
        if name == "logical_not":
            truth = add(name, truth)
        else:
            last = add(name, last)
    for name in BINARY.split():
        if name in ("logical_and", "logical_or"):
            truth = add(name, truth, truth)
        elif "equal" in name or name in ("less", "greater"):
            truth = add(name, last, 1)
        else:
            last = add(name, last, last if name.endswith("grad") else 1)
    add("where", truth, last, 1)
    return tuple(steps)


def calls(dtype: str) -> Iterator[Call]:
    """Calls with the shapes of networks: every kernel, and of the large ones every tile. "int8" are networks in bytes."""
    if dtype == "int8":
        yield from quantized_calls()
        return
    image, vector = ((8, 56, 56, 64), dtype), ((64,), dtype)
    yield Call("chain", (image, vector), {"program": _program(dtype)})
    yield Call("sin", (image,), {})
    yield Call("add", (image, ((8, 1, 1, 64), dtype)), {})
    yield Call("cast", (image,), {"dtype": "bool"})
    yield Call("contiguous", (image,), {})
    yield Call("concat", (image, image), {"axis": 3})
    yield Call("pad", (image,), {"widths": ((0, 0), (1, 1), (1, 1), (0, 0)), "value": 0.0, "mode": "constant"})
    for axis in ((1, 2), (3,), (0, 1, 2, 3)):
        yield Call("sum", (image,), {"axis": axis, "keepdims": False})
    yield Call("max", (((64, 2000), dtype),), {"axis": (1,), "keepdims": False})
    yield Call("prod", (((64, 2000), dtype),), {"axis": (1,), "keepdims": False})
    yield Call("argmax", (((256, 1000), dtype),), {"axis": 1, "keepdims": False})
    yield Call("cumsum", (((256, 1000), dtype),), {"axis": 1})
    for shape in ((256, 1000), (32, 32000)):
        yield Call("softmax", ((shape, dtype),), {"axis": 1})
        yield Call("log_softmax_grad", ((shape, dtype), (shape, dtype)), {"axis": 1})
        yield Call("cross_entropy", ((shape, dtype), (shape[:1], "int64")), {"label_smoothing": 0.1})
        yield Call("layer_norm", ((shape, dtype), (shape[1:], dtype), (shape[1:], dtype)), {"epsilon": 1e-5})
        yield Call(
            "layer_norm_grad", ((shape, dtype), (shape, dtype), (shape[1:], dtype), (shape[:1], dtype), (shape[:1], dtype)), {}
        )
    yield Call("batch_norm", (image, *(vector,) * 4), {"epsilon": 1e-3})
    yield Call("batch_norm_train", (image, vector, vector), {"epsilon": 1e-3})
    yield Call("batch_norm_grad", (image, image, *(vector,) * 3), {"epsilon": 1e-3})
    window = {"window": (3, 3), "stride": (2, 2), "padding": ((0, 0), (0, 0))}
    pooled = ((8, 27, 27, 64), dtype)
    yield Call("max_pool2d", (image,), window)
    yield Call("max_pool2d_grad", (pooled, image, pooled), window)
    yield Call("max_pool2d_take", (image, image, pooled), window)
    yield Call("avg_pool2d", (image,), {**window, "count_padding": False})
    yield Call("avg_pool2d_grad", (pooled,), {**window, "count_padding": False, "input_shape": image[0]})
    yield Call("gather", (((1000, 512), dtype), ((4096,), "int64")), {"axis": 0})
    yield Call("scatter_add", (((4096, 512), dtype), ((4096,), "int64")), {"axis": 0, "size": 1000})
    yield Call("one_hot", (((256,), "int64"),), {"depth": 1000, "dtype": dtype})
    for method in ("nearest", "bilinear"):
        yield Call("resize", (image,), {"size": (112, 112), "method": method})
        yield Call("resize_grad", (((8, 112, 112, 64), dtype),), {"input_size": (56, 56), "method": method})
    yield Call("dropout", (image, ((2,), "uint64")), {"rate": 0.1})
    yield Call("dropout_grad", (image, (image[0], "uint8")), {"rate": 0.1})
    weight, one = ((512, 512), dtype), ((), dtype)
    yield Call(
        "sgd_update", (*(weight,) * 3, one), {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "dampening": 0.0}
    )
    yield Call("sgd_update", (*(weight, weight, weight) * 2, one),
               {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "dampening": 0.0})  # fmt: skip
    for count in (1, 2):
        yield Call("adam_update", (*(*(weight,) * 4, one) * count, one),
                   {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0, "decoupled": False})  # fmt: skip
    yield Call("moving_average", (vector, vector), {"momentum": 0.9})
    yield Call("increment", (one,), {})
    yield Call("increment", (one, one), {})
    yield from products(dtype)


def products(dtype: str) -> Iterator[Call]:
    """Products and convolutions: every tile, large and small, aligned and not."""
    variants = ("cuda", "tf32") if dtype == "float32" else ("cuda",)
    for variant in variants:
        for m, k, n in ((4096, 4096, 4096), (4096, 512, 64), (64, 4096, 128), (33, 65, 37)):
            yield Call("matmul", (((m, k), dtype), ((k, n), dtype)), {}, variant)
        yield Call("linear", (((256, 2048), dtype), ((2048, 1000), dtype), ((1000,), dtype)), {"activation": "relu"}, variant)
        for batch, size, channels, outputs, window, stride, groups in (
            (32, 56, 64, 64, 3, 1, 1), (32, 56, 128, 128, 3, 2, 1), (32, 14, 256, 1024, 1, 2, 1), (32, 7, 512, 512, 3, 1, 1),
            (32, 224, 3, 64, 7, 2, 1), (32, 28, 128, 128, 3, 1, 4), (32, 56, 96, 96, 3, 1, 96),
        ):  # fmt: skip
            half = window // 2
            geometry = {
                "stride": (stride, stride),
                "padding": ((half, half), (half, half)),
                "dilation": (1, 1),
                "groups": groups,
            }
            out = (size + 2 * half - window) // stride + 1
            x, g = ((batch, size, size, channels), dtype), ((batch, out, out, outputs), dtype)
            w = ((window, window, channels // groups, outputs), dtype)
            yield Call("conv2d", (x, w, ((outputs,), dtype)), {**geometry, "activation": "relu"}, variant)
            yield Call("conv2d_input_grad", (g, w), {**geometry, "input_shape": x[0]}, variant)
            yield Call("conv2d_weight_grad", (x, g), {**geometry, "kernel_shape": (window, window)}, variant)


def quantized_calls() -> Iterator[Call]:
    """Every tile, kind of input and kind of output."""
    for kind, out, out_scale in (("int8", "int8", 0.1), ("uint8", "uint8", 0.1), ("int8", "float32", None)):
        scales = {"x_scale": 0.1, "x_zero_point": 3, "out_scale": out_scale, "out_zero_point": 0, "low": 0.0, "high": None,
                  "dtype": out}  # fmt: skip
        for m, k, n in ((4096, 1024, 4096), (512, 1024, 4096), (64, 4096, 128), (33, 65, 37)):
            yield Call("quantized_matmul", (((m, k), kind), ((k, n), "int8"), ((n,), "float32"), ((n,), "int32")), scales)
        for batch, size, channels, outputs, window, stride, groups in (
            (32, 56, 128, 128, 3, 1, 1), (32, 7, 512, 512, 3, 1, 1), (32, 224, 3, 64, 7, 2, 1), (32, 56, 96, 96, 3, 1, 96),
        ):  # fmt: skip
            half = window // 2
            geometry = {"stride": (stride, stride), "padding": ((half, half),) * 2, "dilation": (1, 1), "groups": groups}
            w = ((window, window, channels // groups, outputs), "int8")
            inputs = (((batch, size, size, channels), kind), w, ((outputs,), "float32"), ((outputs,), "int32"))
            yield Call("quantized_conv2d", inputs, {**geometry, **scales})
            if kind == "uint8":
                out_size = (size + 2 * half - window) // stride + 1
                added = {"other_scale": 0.1, "other_zero_point": 3}
                other = ((batch, out_size, out_size, outputs), "uint8")
                yield Call("quantized_conv2d_add", (*inputs, other), {**geometry, **scales, **added})
    yield from byte_images()


def byte_images() -> Iterator[Call]:
    """What is between the products of a network in bytes."""
    image = (8, 56, 56, 64)
    forms = {"x_scale": 0.1, "x_zero_point": 3, "out_scale": 0.2, "out_zero_point": 7}
    window = {"window": (3, 3), "stride": (2, 2), "padding": ((1, 1), (1, 1))}
    yield Call("quantize", ((image, "float32"),), {"scale": 0.1, "zero_point": 3})
    yield Call("dequantize", ((image, "uint8"),), {"scale": 0.1, "zero_point": 3})
    yield Call("quantized_add", ((image, "uint8"),) * 2, {**forms, "y_scale": 0.1, "y_zero_point": 3, "low": 0.0, "high": None})
    yield Call("byte_table", ((image, "uint8"), ((256,), "uint8")), {})
    yield Call("quantized_max_pool2d", ((image, "uint8"),), window)
    yield Call("quantized_avg_pool2d", ((image, "uint8"),), {**window, **forms, "count_padding": False})


def steps_of(architecture: str, dtypes=DTYPES, made=calls) -> dict[tuple, Step]:
    """Distinct (source, kernel) with one step each, from all calls on a machine of this architecture."""
    machine, kept = Recorder(architecture), launch.stand_in
    launch.stand_in = machine
    try:
        for dtype in dtypes:
            for call in made(dtype):
                _record(call)
    finally:
        launch.stand_in = kept
    return {(step.source, step.kernel): step for step in machine.steps}


def _record(call: Call) -> None:
    op = OPS[call.op]
    arrays = [np.empty(shape, dtype) for shape, dtype in call.inputs]
    if call.op == "contiguous":
        arrays[0] = arrays[0].transpose(0, 3, 1, 2)
    specs = op.infer(*arrays, **call.attrs)
    outs = None if specs is None else tuple(np.empty(*s) for s in specs) if op.multi else np.empty(*specs)
    kernels.get(call.op, device="cuda", variant=call.variant)(*arrays, out=outs, **call.attrs)


# -- the report --------------------------------------------------------------------------------------------------------

_ENTRY = re.compile(r"Compiling entry function '(\w+)'.*?(?=Compiling entry function|\Z)", re.DOTALL)


class Usage(NamedTuple):
    registers: int
    shared: int  # bytes, static and dynamic
    stack: int
    spills: int  # bytes stored and loaded
    warnings: tuple[str, ...]


def usage(log: str, kernel: str, dynamic: int = 0) -> Usage:
    """What the assembler says about one kernel. Raises ValueError where it says nothing."""
    for entry in _ENTRY.finditer(log):
        if entry.group(1) == kernel:
            text = entry.group(0)
            stack, stores, loads = (
                _number(p, text) for p in (r"(\d+) bytes stack frame", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
            )
            shared = sum(map(int, re.findall(r"(\d+) bytes smem", text)))
            serialised = tuple(sorted(set(re.findall(r"C75\d\d", log))))
            return Usage(_number(r"Used (\d+) registers", text), shared + dynamic, stack, stores + loads, serialised)
    raise ValueError(f"the compiler's log has no entry for {kernel}:\n{log}")


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def compile_log(source: loader.Source, architecture: str) -> str:
    """What the assembler says about a source."""
    return loader.compile_source(source, architecture).log


def measure(architecture: str, dtypes=DTYPES, made=calls, files: Collection[str] | None = None, logs=None) -> list[dict]:
    """One row a kernel: compiled for the architecture, with what it uses. files: only the kernels of these.

    logs(sources, architecture) -> what the assembler says about each; by default one after the other, here."""
    steps = {key: step for key, step in steps_of(architecture, dtypes, made).items() if files is None or key[0].file in files}
    sources = list(dict.fromkeys(source for source, _ in steps))
    found = logs(sources, architecture) if logs else [compile_log(source, architecture) for source in sources]
    said = dict(zip(sources, found, strict=True))
    rows = []
    for (source, kernel), step in sorted(steps.items(), key=lambda item: (item[0][0].file, item[0][1])):
        used = usage(said[source], kernel, step.shared)
        rows.append({"architecture": architecture, "file": source.file, "kernel": kernel, "macros": short(dict(source.defines)),
                     **used._asdict(), "threads": int(np.prod(step.block)), "local_meant": _means_local(source)})  # fmt: skip
    return rows


def _means_local(source: loader.Source) -> bool:
    """Whether the kernel is meant to use local memory: reducing the argument of a sine does."""
    return any(f"op::{name}(" in value for _, value in source.defines for name in ("sin", "cos"))


def short(defines: dict[str, str]) -> str:
    """Macros for a table: no program text."""
    return " ".join(f"{k}={v}" for k, v in defines.items() if k not in ("STEPS", "INPUTS", "BEATS(x, y)") and len(v) < 24)


def problems(rows: list[dict]) -> list[str]:
    """Spills, local memory and serialised tensor-core products."""
    return [
        f"{r['kernel']} on {r['architecture']} ({r['macros']}): {r['spills']} bytes spilled, "
        f"{r['stack']} bytes of stack, {r['warnings']}"
        for r in rows
        if r["spills"] or (r["stack"] and not r["local_meant"]) or any(w in ("C7508", "C7510") for w in r["warnings"])
    ]  # fmt: skip


def table(rows: list[dict]) -> str:
    """A row a kernel and set of macros, a column of registers an architecture: of chains that share a row, the neediest's."""
    names = [a for a in ARCHITECTURES if any(r["architecture"] == a for r in rows)]
    found: dict[tuple, dict[str, dict]] = {}
    for r in rows:
        by = found.setdefault((r["file"], r["kernel"], r["macros"]), {})
        if r["registers"] >= by.get(r["architecture"], r)["registers"]:
            by[r["architecture"]] = r
    lines = [f"| kernel | macros | threads | shared bytes | {' | '.join(names)} |", f"|{'---|' * (4 + len(names))}"]
    for (_, kernel, macros), by in found.items():
        first = next(iter(by.values()))
        registers = [str(by[a]["registers"]) if a in by else "" for a in names]
        shared = max(r["shared"] for r in by.values())
        lines.append(f"| `{kernel}` | {macros} | {first['threads']} | {shared} | {' | '.join(registers)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="registers and shared memory of every CUDA kernel")
    parser.add_argument("--only", choices=ARCHITECTURES, action="append", help="only this architecture (may be repeated)")
    options = parser.parse_args()
    rows = []
    with ProcessPoolExecutor() as pool:
        for architecture in options.only or ARCHITECTURES:
            rows += measure(architecture, logs=lambda sources, name: pool.map(compile_log, sources, [name] * len(sources)))
            print(f"{architecture}: {sum(r['architecture'] == architecture for r in rows)} kernels", flush=True)
    wrong = problems(rows)
    compiler = ".".join(map(str, nvrtc.version()))
    text = [
        "# Resources of the CUDA kernels", "", f"Registers a thread by architecture, as NVRTC {compiler} reports them; "
        f"`python -m bench.cuda_resources` writes this. Spills or local memory: {len(wrong) or 'none'}.", "",
        *(f"- {w}" for w in wrong),
        table(rows), "",
    ]  # fmt: skip
    if options.only is None:
        print("wrote", write("cuda_resources", {"nvrtc": compiler, "kernels": rows}))
        print("wrote", write_text("cuda_resources.md", "\n".join(text)))
    print("\n".join(wrong) or "no spills, no local memory, no serialised products")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
