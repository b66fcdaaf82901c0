"""Weights by formula: the same values wherever a model is built, so that only outputs need to be kept.

Plain NumPy, since `scripts/keras_goldens.py` uses it in a process with Keras and the tests use it without.
"""

from __future__ import annotations

import math
import re
import zlib

import numpy as np

SEED = 1


def noise(name: str, shape: tuple[int, ...], seed: int = SEED) -> np.ndarray:
    """float32 in [-1, 1) that depend on name, position and seed: a counter through an integer hash, exact everywhere."""
    start = zlib.crc32(f"{name}/{seed}".encode())
    x = np.arange(math.prod(shape), dtype=np.uint32)
    x += np.uint32(start)  # uint32 arrays wrap around
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):  # the finaliser of MurmurHash3
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    return (x.astype(np.float64) / 2**31 - 1.0).astype(np.float32).reshape(shape)


def values(layer: str, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
    """What a tensor in Keras's shape is filled with.

    Kernels keep the size of a rectified signal (He et al. 2015), gammas below 1 keep sums over many blocks small, variances are
    positive, and shifts are small beside the signal.
    """
    return np.float32(_gain(layer, tensor)) * _values(layer, tensor, shape)


def _gain(layer: str, tensor: str) -> float:
    """EfficientNets halve a signal at every gate and at small values of silu, and sum over many blocks; MobileNets have few
    sums that keep it up. Without these factors nothing of the picture arrives, or its size explodes."""
    if tensor == "depthwise_kernel" and re.fullmatch(r"block\d+a_dwconv2?", layer):
        return 4.0
    if tensor == "gamma" and layer == "stem_bn":
        return 2.0
    if tensor == "gamma" and re.fullmatch(r"block\d+[b-z]_project_bn", layer):
        return 0.5
    if tensor == "gamma" and re.fullmatch(r"conv_(dw|pw)_\d+_bn", layer):
        return 1.5
    if tensor == "gamma" and re.fullmatch(r"expanded_conv_.*_bn", layer):  # MobileNetV3; V2 says _BN
        return 1.25
    return 1.0


def _values(layer: str, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
    u = noise(f"{layer}/{tensor}", shape)
    if tensor == "depthwise_kernel":
        return u * np.float32(math.sqrt(6 / math.prod(shape[:2])))
    if tensor in ("kernel", "pointwise_kernel"):
        return u * np.float32(math.sqrt(6 / math.prod(shape[:-1])))
    if tensor == "gamma":
        return np.float32(0.8) + np.float32(0.1) * u
    if tensor == "variable":  # the only tensor that Keras leaves without a name: ConvNeXt's factor for each channel
        return np.float32(0.5) * u
    if tensor in ("moving_variance", "variance"):
        return np.float32(1.0) + np.float32(0.5) * u
    return np.float32(0.1) * u


def pictures(height: int, width: int) -> np.ndarray:
    """Two preprocessed "pictures" (2, height, width, 3) that a network without training tells apart."""
    x = 2 * noise("pictures", (2, height, width, 3))
    x[0] += np.array([1, -1, 0.5], np.float32)
    x[1] = x[1] * np.linspace(0, 1, width, dtype=np.float32)[:, None] - np.array([1, -0.5, -1], np.float32)
    return x


def pixels(height: int, width: int) -> np.ndarray:
    """The same two pictures as float32 pixels of 0 to 255, for networks that normalise them themselves."""
    return np.round(np.clip(128 + 40 * pictures(height, width), 0, 255)).astype(np.float32)


def layer_value(case: str, layer: str, position: int, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of one layer by its position among the layer's tensors; variances are positive, counts are 1."""
    u = noise(f"{case}/{layer}/{position}", shape)
    if "variance" in tensor:
        return np.float32(1.0) + np.float32(0.5) * u
    return np.ones(shape, np.float32) if tensor.endswith("count") else np.float32(0.7) * u


def layer_input(case: str, position: int, shape: tuple[int, ...], integers: int = 0) -> np.ndarray:
    """An input in [-1, 1), or whole numbers below `integers` as float32."""
    u = noise(f"{case}/input/{position}", shape)
    return np.floor((u + 1) / 2 * integers).astype(np.float32) if integers else u
