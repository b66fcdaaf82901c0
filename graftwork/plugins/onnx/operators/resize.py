"""Resizing: positions and weights are worked out here, the rest is a product (or a pick) along each dimension."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....nn import functional as F
from ....nn.tensor import Tensor
from .table import Call, Value, fixed, operator

COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
               "tf_half_pixel_for_nn", "tf_crop_and_resize")  # fmt: skip
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@operator("Upsample", known=(1,))
def upsample(c: Call) -> Any:
    mode = c.choice("mode", "nearest", ("nearest", "linear", "bilinear"))
    scales = list(c.known(1)) if c.has(1) else list(c.required("scales"))
    x = c.x()
    for axis, scale in enumerate(scales):
        size = int(np.floor(x.shape[axis] * scale))
        x = _along(x, axis, size, float(scale), Settings("nearest" if mode == "nearest" else "linear", "asymmetric", "floor"))
    return x


class Settings:
    """How one dimension is resized."""

    def __init__(self, mode: str, coordinates: str, rounding: str = "round_prefer_floor", cubic: float = -0.75,
                 outside: bool = False, antialias: bool = False, extrapolation: float = 0.0, roi=(0.0, 1.0)):  # fmt: skip
        self.mode, self.coordinates, self.rounding, self.cubic = mode, coordinates, rounding, cubic
        self.outside, self.antialias, self.extrapolation, self.roi = outside, antialias, extrapolation, roi


@operator("Resize", known=(1, 2, 3))
def resize(c: Call) -> Any:
    rank = c.value().ndim
    mode = c.choice("mode", "nearest", ("nearest", "linear", "cubic"))
    coordinates = "asymmetric"
    roi, scales, sizes = (c.known(i) if c.has(i) and c.known(i).size else None for i in (1, 2, 3))
    if c.opset < 11:
        scales, roi = roi, None
    else:
        coordinates = c.choice("coordinate_transformation_mode", "half_pixel", COORDINATES)
    axes = [a % rank for a in c.attr("axes", range(rank))]
    rounding = c.choice("nearest_mode", "round_prefer_floor" if c.opset >= 11 else "floor", ROUNDINGS)
    policy = c.choice("keep_aspect_ratio_policy", "stretch", ("stretch", "not_larger", "not_smaller"))
    common = {"cubic": c.attr("cubic_coeff_a", -0.75), "outside": bool(c.attr("exclude_outside", 0)),
              "antialias": bool(c.attr("antialias", 0)), "extrapolation": c.attr("extrapolation_value", 0.0)}  # fmt: skip
    before = _shape(c.value(), c)
    plan = []
    for i, (size, scale) in enumerate(_targets([before[a] for a in axes], scales, sizes, policy)):
        region = (0.0, 1.0) if roi is None else (float(roi[i]), float(roi[i + len(axes)]))
        if size != before[axes[i]] or scale != 1.0 or (coordinates == "tf_crop_and_resize" and region != (0.0, 1.0)):
            plan.append((axes[i], size, scale, Settings(mode, coordinates, rounding, roi=region, **common)))
    fast = _image_method(mode, coordinates, rounding, common["antialias"])
    if fast and rank == 4 and {p[0] for p in plan} <= {2, 3} and _exact(plan, before) and c.image().dtype == np.float32:
        wanted = {a: n for a, n, _, _ in plan}
        return Value(image=F.resize(c.image(), tuple(wanted.get(a, before[a]) for a in (2, 3)), fast))
    x = c.x()
    for axis, size, scale, settings in plan:
        x = _along(x, axis, size, scale, settings)
    return x


def _shape(value: Value, c: Call) -> tuple[int, ...]:
    if value.is_image:
        n, *spatial, channels = c.image().shape
        return (n, channels, *spatial)
    return c.x().shape


def _image_method(mode: str, coordinates: str, rounding: str, antialias: bool) -> str | None:
    """The method of our op that computes the same."""
    if antialias or coordinates not in ("half_pixel", "pytorch_half_pixel"):
        return None
    if mode == "linear":
        return "bilinear"
    return "nearest" if mode == "nearest" and rounding == "round_prefer_ceil" else None


def _exact(plan: list[tuple], before: tuple[int, ...]) -> bool:
    """Whether every scale is the ratio of the sizes, and no size is 1 (where the coordinates differ)."""
    return all(size > 1 and abs(size / before[axis] - scale) < 1e-6 for axis, size, scale, _ in plan)


def _targets(before: list[int], scales: Any, sizes: Any, policy: str) -> list[tuple[int, float]]:
    """(size, scale) for each dimension that is named."""
    if scales is not None:
        return [(int(np.floor(n * float(s))), float(s)) for n, s in zip(before, scales, strict=True)]
    wanted = [int(n) for n in sizes]
    ratios = [m / n for m, n in zip(wanted, before, strict=True)]
    if policy == "stretch":
        return list(zip(wanted, ratios, strict=True))
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [(int(np.floor(scale * n + 0.5)), scale) for n in before]


def _positions(size: int, length: int, scale: float, s: Settings) -> np.ndarray:
    """Where each output stands among the inputs, in float64."""
    i = np.arange(size, dtype=np.float64)
    whole = scale * length
    if s.coordinates == "align_corners":
        return i * (length - 1) / (whole - 1) if whole != 1 else np.zeros(size)
    if s.coordinates == "asymmetric":
        return i / scale
    if s.coordinates == "tf_half_pixel_for_nn":
        return (i + 0.5) / scale
    if s.coordinates == "tf_crop_and_resize":
        start, end = s.roi
        if size == 1:
            return np.full(1, 0.5 * (start + end) * (length - 1))
        return start * (length - 1) + i * (end - start) * (length - 1) / (whole - 1)
    if s.coordinates == "pytorch_half_pixel" and whole <= 1:
        return np.full(size, -0.5)
    if s.coordinates == "half_pixel_symmetric":
        adjustment = size / whole
        centre = length / 2
        return centre * (1 - adjustment) + (i + 0.5) / scale - 0.5
    return (i + 0.5) / scale - 0.5


def _nearest(positions: np.ndarray, rounding: str) -> np.ndarray:
    if rounding == "floor":
        return np.floor(positions)
    if rounding == "ceil":
        return np.ceil(positions)
    down = np.ceil(positions - 0.5)
    return down if rounding == "round_prefer_floor" else np.floor(positions + 0.5)


def _kernel(distance: np.ndarray, s: Settings) -> np.ndarray:
    d = np.abs(distance)
    if s.mode == "linear":
        return np.maximum(1 - d, 0)
    a = s.cubic
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _weights(size: int, length: int, scale: float, s: Settings) -> np.ndarray:
    """(size, length): what each output takes of each input."""
    positions = _positions(size, length, scale, s)
    stretch = min(scale, 1.0) if s.antialias else 1.0
    reach = int(np.ceil((1 if s.mode == "linear" else 2) / stretch))
    first = np.floor(positions).astype(int) - reach + 1
    at = first[:, None] + np.arange(2 * reach)
    part = _kernel((positions[:, None] - at) * stretch, s)
    inside = (at >= 0) & (at < length)
    if s.outside:
        part = np.where(inside, part, 0)
    part = part / part.sum(1, keepdims=True)
    weights = np.zeros((size, length))
    np.add.at(weights, (np.arange(size)[:, None], np.clip(at, 0, length - 1)), part)
    return weights


def _along(x: Tensor, axis: int, size: int, scale: float, s: Settings) -> Tensor:
    length = x.shape[axis]
    if s.mode == "nearest":
        picked = np.clip(_nearest(_positions(size, length, scale, s), s.rounding), 0, length - 1).astype(np.int64)
        y = F.gather(x, fixed(x, picked, np.int64), axis)
    else:
        order = [i for i in range(x.ndim) if i != axis] + [axis]
        moved = F.transpose(x, order)
        y = F.matmul(moved, fixed(x, _weights(size, length, scale, s).T))
        y = F.transpose(y, np.argsort(order).tolist())
    if s.coordinates != "tf_crop_and_resize":
        return y
    at = _positions(size, length, scale, s)
    inside = ((at >= 0) & (at <= length - 1)).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return F.where(fixed(x, inside, bool), y, fixed(x, s.extrapolation))
