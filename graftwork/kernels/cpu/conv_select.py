"""Which kernel computes a convolution and its gradients: a choice by shapes, apart from the kernels."""

from __future__ import annotations

from typing import Any

from ..plan import Plan, Spec
from . import conv_gemm, conv_grads, depthwise, winograd


def plan_conv2d(x: Spec, w: Spec, b: Spec | None = None, r: Spec | None = None, *, out: Spec, activation=None,
                **geometry: Any) -> Plan | None:  # fmt: skip
    """The plan of out = activation(x * w + b + r); None where only the plain kernels can do it (float64, empty arrays)."""
    if _is_plain(x, w, out):
        return None
    if depthwise.supports(x, w, geometry["groups"]):
        return depthwise.plan(x, w, b, r, out=out, activation=activation, **geometry)
    if winograd.supports(x, w, **geometry):
        return winograd.plan(x, w, b, r, out=out, activation=activation, **geometry)
    return conv_gemm.plan_forward(x, w, b, r, out=out, activation=activation, **geometry)


def plan_conv2d_input_grad(g: Spec, w: Spec, *, out: Spec, input_shape, **geometry: Any) -> Plan | None:
    """The plan of the gradient in x, which is `out`."""
    if _is_plain(g, w, out):
        return None
    if depthwise.supports(out, w, geometry["groups"]):
        return depthwise.plan_input_grad(g, w, out=out, input_shape=input_shape, **geometry)
    if winograd.supports_input_grad(g, w, **geometry):
        return winograd.plan_input_grad(g, w, out=out, input_shape=input_shape, **geometry)
    return conv_grads.plan_input_grad(g, w, out=out, input_shape=input_shape, **geometry)


def plan_conv2d_weight_grad(x: Spec, g: Spec, *, out: Spec, kernel_shape, **geometry: Any) -> Plan | None:
    """The plan of the gradient in w, which is `out`."""
    if _is_plain(x, g, out):
        return None
    if depthwise.supports(x, out, geometry["groups"]):
        planned = depthwise.plan_weight_grad(x, g, out=out, kernel_shape=kernel_shape, **geometry)
        if planned is not None:
            return planned
    return conv_grads.plan_weight_grad(x, g, out=out, kernel_shape=kernel_shape, **geometry)


def _is_plain(*specs: Spec) -> bool:
    """Whether the planned kernels do not apply: another dtype than float32, or nothing to compute."""
    return any(s.dtype != conv_gemm.FLOAT32 or 0 in s.shape for s in specs)
