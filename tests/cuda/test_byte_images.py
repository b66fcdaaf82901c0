"""Images of bytes on the emulator, to the bit: odd sizes, tails, wide and narrow channels, values between two steps, NaN; and
that mistakes in the kernels are seen."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from emulator import emulate
from emulator.build import KERNELS
from machine import _argument

from graftwork import kernels
from graftwork.kernels.cuda import nvrtc
from graftwork.nn.op import OPS

POOL = {"window": (3, 2), "stride": (2, 1), "padding": ((1, 0), (0, 1))}
FORMS = {"x_scale": 0.02, "x_zero_point": 3, "out_scale": 0.05, "out_zero_point": 11}


def image(rng, *shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


def between(size: int, scale: float) -> np.ndarray:
    """Values on and halfway between the steps of a scale, beyond both ends, infinities and NaN."""
    values = (np.arange(size, dtype=np.float32) - size // 2) * np.float32(scale / 2)
    values[:3] = np.nan, np.inf, -np.inf
    return values


def calls(rng):
    """Name -> inputs and attributes."""
    add = {**FORMS, "y_scale": 0.07, "y_zero_point": 200, "low": 0.0, "high": 6.0}
    mean = {**POOL, **FORMS, "count_padding": False}
    return {
        "quantize": ((between(1033, 0.25),), {"scale": 0.25, "zero_point": 120}),
        "dequantize": ((image(rng, 3, 349),), {"scale": 0.03, "zero_point": 120}),
        "quantized_add": ((image(rng, 1043), image(rng, 1043)), add),
        "byte_table": ((image(rng, 5, 827), image(rng, 256)), {}),
        "max": ((image(rng, 2, 7, 9, 48),), POOL),
        "mean": ((image(rng, 2, 7, 9, 48),), mean),
        "mean of odd channels": ((image(rng, 1, 6, 5, 7),), {**mean, "count_padding": True}),
    }


OP_OF = {"max": "quantized_max_pool2d", "mean": "quantized_avg_pool2d", "mean of odd channels": "quantized_avg_pool2d"}
NAMES = list(calls(np.random.default_rng(0)))


def compared(name: str, rng) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel and the reference compute."""
    inputs, attrs = calls(rng)[name]
    op = OPS[OP_OF.get(name, name)]
    results = [np.full(*op.infer(*inputs, **attrs)[:1], 3, op.infer(*inputs, **attrs)[1]) for _ in range(2)]
    kernels.get(op.name, device="cuda")(*inputs, out=results[0], **attrs)
    with np.errstate(invalid="ignore"):
        kernels.get(op.name, variant="reference")(*inputs, out=results[1], **attrs)
    return results[0], results[1]


@pytest.mark.parametrize("name", NAMES)
def test_every_bit(emulated, name, rng):
    found, expected = compared(name, rng)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) > 40, "the case says too little"


def test_wide_accesses_are_taken(emulated, rng):
    """16 bytes an access: of float32 where there is some, of bytes otherwise."""
    lanes = {}
    run = emulated.run
    emulated.run = lambda step, pointers: (lanes.setdefault(name, dict(step.source.defines)["LANES"]), run(step, pointers))
    for name in NAMES:
        compared(name, rng)
    assert {name for name, wide in lanes.items() if wide == "16"} == {"quantized_add", "byte_table", "max", "mean"}
    assert lanes["quantize"] == lanes["dequantize"] == "4" and lanes["mean of odd channels"] == "1"


FAULTS = {
    "half away from zero": ("bytes.cuh", "rintf(value < high", "roundf(value < high", "quantize"),
    "NaN as the highest": ("bytes.cuh", "value = value > low ? value : low;", "value = value < low ? low : value;", "quantize"),
    "no zero point": ("byte_images.cu", "i32(found.at[i]) - p.x_zero", "i32(found.at[i])", "mean"),
    "padding counted": ("windows.cuh", "if (!count_padding) return", "if (count_padding) return", "mean"),
    "no tail": ("byte_images.cu", "for (; index < count; index++)", "for (; index + 1 < count; index++)", "byte_table"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_mistakes_are_seen(emulated, tmp_path, fault, rng):
    file, old, new, name = FAULTS[fault]
    folder = shutil.copytree(KERNELS, tmp_path / "kernels", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    text = (folder / file).read_text()
    assert text.count(old) == 1, f"{file} no longer has exactly one `{old}`"
    (folder / file).write_text(text.replace(old, new))

    def run(step, pointers):
        emulate(folder / step.source.file, step.kernel, step.grid, step.block, step.shared,
                [_argument(a, pointers) for a in step.arguments], defines=dict(step.source.defines))  # fmt: skip

    emulated.run = run
    found, expected = compared(name, rng)
    assert (found != expected).any()


def test_no_product_is_contracted_with_a_sum(emulated, rng):
    """The compiler may make one rounding of two unless the kernels forbid it; the emulator never does."""
    from graftwork.kernels.cuda.loader import compile_source

    if not nvrtc.is_available():
        pytest.skip("no NVRTC; install nvidia-cuda-nvrtc")
    sources: list = []
    emulated.run = lambda step, pointers: sources.append(step.source)
    compared("quantized_add", rng)
    text = compile_source(sources[0], "compute_80", ptx=True).code.decode()
    assert "mul.rn.f32" in text and "fma.rn.f32" not in text
