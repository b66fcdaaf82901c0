"""Which kernel computes a convolution and its gradients: a choice by shapes, apart from the kernels."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from ..plan import Plan, Spec
from . import conv_gemm

# Kernels for special shapes, asked first: modules with supports(x, w, stride, padding, dilation, groups) and
# plan(x, w, b, r, out=..., stride=..., padding=..., dilation=..., groups=..., activation=...).
_SPECIAL = tuple(name for name in ("winograd", "depthwise") if find_spec(f"{__package__}.{name}"))


def plan_conv2d(
    x: Spec, w: Spec, b: Spec | None = None, r: Spec | None = None, *, out: Spec, stride, padding, dilation, groups: int,
    activation=None,
) -> Plan | None:  # fmt: skip
    """The plan of out = activation(x * w + b + r); None where only the plain kernels can do it (float64, empty arrays)."""
    if x.dtype != conv_gemm.FLOAT32 or 0 in out.shape or 0 in x.shape:
        return None
    for name in _SPECIAL:
        special = import_module(f"{__package__}.{name}")
        if special.supports(x, w, stride, padding, dilation, groups):
            return special.plan(
                x, w, b, r, out=out, stride=stride, padding=padding, dilation=dilation, groups=groups, activation=activation
            )
    return conv_gemm.plan_forward(
        x, w, b, r, out=out, stride=stride, padding=padding, dilation=dilation, groups=groups, activation=activation
    )
