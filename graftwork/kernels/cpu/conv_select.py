"""Which kernel computes a convolution and its gradients: a choice by shapes, apart from the kernels."""

from __future__ import annotations

from typing import Any

from ..plan import Plan, Spec
from . import conv_gemm, conv_grads, depthwise, tuning, winograd
from .simd import LANES


def plan_conv2d(
    x: Spec, w: Spec, b: Spec | None = None, r: Spec | None = None, *, out: Spec, stride, padding, dilation, groups: int,
    activation=None,
) -> Plan | None:  # fmt: skip
    """The plan of out = activation(x * w + b + r); None where only the plain kernels can do it (float64, empty arrays)."""
    if x.dtype != conv_gemm.FLOAT32 or 0 in x.shape or 0 in out.shape:
        return None
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if _is_depthwise(groups, w):
        return depthwise.plan(x, w, b, r, out=out, activation=activation, **geometry)
    if choice := tuning.table().get(tuning.key(x, w, **geometry)):
        planned = plan_as(choice, x, w, b, r, out=out, activation=activation, **geometry)
        if planned is not None:
            return planned
    if _sums_enough(w.shape[2]) and winograd.supports(x, w, stride, padding, dilation, groups):
        return winograd.plan(x, w, b, r, out=out, activation=activation, **geometry)
    return conv_gemm.plan_forward(x, w, b, r, out=out, activation=activation, **geometry)


CANDIDATES = ("gemm", *(f"winograd {m} {order}" for m in (2, 4, 6) for order in ("tiles", "panels")))


def plan_as(
    name: str, x: Spec, w: Spec, b: Spec | None, r: Spec | None, *, out: Spec, activation, **geometry: Any
) -> Plan | None:
    """The plan by one of `CANDIDATES`; None where that one cannot do it, or where there is none of that name."""
    if name == "gemm":
        return conv_gemm.plan_forward(x, w, b, r, out=out, activation=activation, **geometry)
    if name not in CANDIDATES:
        return None
    _, m, order = name.split()
    return winograd.plan(x, w, b, r, out=out, activation=activation, m=int(m), order=order, **geometry)


def plan_conv2d_input_grad(g: Spec, w: Spec, *, out: Spec, input_shape, stride, padding, dilation, groups: int) -> Plan | None:
    """The plan of the gradient in x."""
    if g.dtype != conv_gemm.FLOAT32 or 0 in g.shape or 0 in out.shape:
        return None
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if _is_depthwise(groups, w):
        return depthwise.plan_input_grad(g, w, out=out, input_shape=input_shape, **geometry)
    if _sums_enough(w.shape[3]) and winograd.supports_input_grad(g, w, stride, padding, dilation, groups):
        return winograd.plan_input_grad(g, w, out=out, input_shape=input_shape, **geometry)
    return conv_grads.plan_input_grad(g, w, out=out, input_shape=input_shape, **geometry)


def plan_conv2d_weight_grad(
    x: Spec, g: Spec, *, out: Spec, kernel_shape, stride, padding, dilation, groups: int
) -> Plan | None:
    """The plan of the gradient in w."""
    if x.dtype != conv_gemm.FLOAT32 or 0 in x.shape or 0 in g.shape or 0 in out.shape:
        return None
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    planner = depthwise.plan_weight_grad if _is_depthwise(groups, out) else conv_grads.plan_weight_grad
    return planner(x, g, out=out, kernel_shape=kernel_shape, **geometry)


def _is_depthwise(groups: int, w: Spec) -> bool:
    return groups > 1 and w.shape[2] == 1


def _sums_enough(channels: int) -> bool:
    """Whether enough channels are summed over for Winograd's fewer multiplications to make up for its transforms."""
    return channels >= LANES
