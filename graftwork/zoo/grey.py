"""Colour networks for grey images: weights for three channels in a network for one.

A grey image is a colour image whose channels are equal, and a convolution of that is the convolution of one channel with the
kernel summed over channels. That is exact where a network's preprocessing treats the channels alike ("tf", "raw", "unit").
"caffe" subtracts another mean from each colour: the difference to their mean, which is what one channel has subtracted, goes
through the kernel into the bias. That is exact but for the border, where padding comes after preprocessing. Networks that divide
each colour by its own deviation ("torch", or inside the network) have no such form and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ModelError
from ..nn import Conv2d, Module
from .images import IMAGENET_BGR_MEAN
from .matching import plain_name

Entries = Sequence[tuple[str, np.ndarray]]


def for_one_channel(model: Module, layers: Mapping[str, Entries]) -> Mapping[str, Entries]:
    """A file's layers for `model`, which takes one channel: its first kernel summed over three, if the file has three."""
    path, first = next((path, m) for path, m in model.named_modules() if hasattr(m, "weight") or hasattr(m, "kernel"))
    name = getattr(model, "layer_names", {}).get(path, path.replace(".", "/"))
    tensors = {plain_name(tensor): value for tensor, value in layers.get(name, ())}
    kernel = tensors.get("kernel")
    if kernel is None or kernel.ndim != 4 or kernel.shape[2] != 3:
        return layers  # made for one channel, or for something else, which the comparison will say
    mode = getattr(model, "preprocessing", "raw")
    if getattr(model, "per_channel", False) or mode == "torch" or not isinstance(first, Conv2d):
        raise ModelError(
            f"{type(model).__name__} normalises each colour by its own mean and deviation, so weights for three channels cannot "
            "be summed into one; leave input_shape at three channels: preprocess() makes three equal ones of a grey picture"
        )
    summed = {"kernel": kernel.sum(2, keepdims=True)}
    if mode == "caffe":
        if "bias" not in tensors:
            raise ModelError(f"{type(model).__name__}: its first convolution has no bias to take up the colours' means; leave "
                             "input_shape at three channels: preprocess() makes three equal ones of a grey picture")  # fmt: skip
        shift = (IMAGENET_BGR_MEAN.mean() - IMAGENET_BGR_MEAN).astype(kernel.dtype)
        summed["bias"] = tensors["bias"] + np.einsum("hwio,i->o", kernel, shift)
    changed: list[tuple[str, Any]] = [(tensor, summed.get(plain_name(tensor), value)) for tensor, value in layers[name]]
    return {**layers, name: changed}
