"""Which kernel computes a convolution and its gradients: a choice by shapes, apart from the kernels."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from ..plan import Plan, Spec
from . import conv_gemm, conv_grads

# Kernels for special shapes, asked first: modules with supports(x, w, stride, padding, dilation, groups) and plan(x, w, b, r,
# out=..., ...), and perhaps the same for gradients.
_SPECIAL = tuple(
    import_module(f"{__package__}.{name}") for name in ("winograd", "depthwise") if find_spec(f"{__package__}.{name}")
)


def plan_conv2d(
    x: Spec, w: Spec, b: Spec | None = None, r: Spec | None = None, *, out: Spec, stride, padding, dilation, groups: int,
    activation=None,
) -> Plan | None:  # fmt: skip
    """The plan of out = activation(x * w + b + r); None where only the plain kernels can do it (float64, empty arrays)."""
    if x.dtype != conv_gemm.FLOAT32 or 0 in out.shape or 0 in x.shape:
        return None
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for special in _SPECIAL:
        if special.supports(x, w, stride, padding, dilation, groups):
            return special.plan(x, w, b, r, out=out, activation=activation, **geometry)
    return conv_gemm.plan_forward(x, w, b, r, out=out, activation=activation, **geometry)


def plan_conv2d_input_grad(g: Spec, w: Spec, *, out: Spec, input_shape, stride, padding, dilation, groups: int) -> Plan | None:
    """The plan of the gradient in x."""
    if g.dtype != conv_gemm.FLOAT32 or 0 in g.shape or 0 in out.shape:
        return None
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for special in _SPECIAL:
        if hasattr(special, "plan_input_grad") and special.supports_input_grad(g, w, stride, padding, dilation, groups):
            return special.plan_input_grad(g, w, out=out, input_shape=input_shape, **geometry)
    return conv_grads.plan_input_grad(g, w, out=out, input_shape=input_shape, **geometry)


def plan_conv2d_weight_grad(
    x: Spec, g: Spec, *, out: Spec, kernel_shape, stride, padding, dilation, groups: int
) -> Plan | None:
    """The plan of the gradient in w."""
    if x.dtype != conv_gemm.FLOAT32 or 0 in x.shape or 0 in g.shape or 0 in out.shape:
        return None
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for special in _SPECIAL:
        if hasattr(special, "plan_weight_grad") and special.supports_weight_grad(x, out, stride, padding, dilation, groups):
            return special.plan_weight_grad(x, g, out=out, kernel_shape=kernel_shape, **geometry)
    return conv_grads.plan_weight_grad(x, g, out=out, kernel_shape=kernel_shape, **geometry)
