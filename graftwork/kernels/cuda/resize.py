"""Resizing images on the GPU, and its adjoint."""

from __future__ import annotations

from ...errors import KernelError
from .launch import Builder, View, c_type, ceil_div, kernel, structure, vector_width

BLOCK = 256


def _launch(b: Builder, name: str, out: View, source: View, small: View, large: View, method: str) -> None:
    """`small` is what `resize` starts from, `large` what it makes, whichever has more pixels."""
    source = b.dense(source)
    for d in (1, 2):
        if 2 * small.shape[d] * (large.shape[d] + 1) >= 2**31:
            raise KernelError(
                f"resize: from {small.shape[d]} to {large.shape[d]} pixels along an axis; their product must stay below 2**30"
            )
    lanes = vector_width(out, source, runs=[out.shape[3]])
    form = structure([
        ("height", "u4", small.shape[1]), ("width", "u4", small.shape[2]), ("out_height", "u4", large.shape[1]),
        ("out_width", "u4", large.shape[2]), ("channels", "u4", out.shape[3]), ("count", "u8", out.size),
    ])  # fmt: skip
    defines = {"ELEMENT": c_type(out.dtype), "LANES": lanes, "BILINEAR": int(method == "bilinear")}
    b.launch("resize.cu", name, defines, ceil_div(out.size // lanes, BLOCK), BLOCK, out, source, form)


@kernel
def resize(b: Builder, x: View, *, out: View, size, method: str) -> None:
    _launch(b, "resize", out, x, x, out, method)


@kernel
def resize_grad(b: Builder, g: View, *, out: View, input_size, method: str) -> None:
    _launch(b, "resize_grad", out, g, out, g, method)
