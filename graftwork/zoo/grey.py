"""Colour networks for grey images: weights for three channels in a network for one.

A grey image is a colour image whose channels are equal, and a convolution of that is the convolution of one channel with the
kernel summed over channels. That is exact where preprocessing treats the channels alike ("tf", "raw", "unit"). "caffe"
subtracts another mean from each colour: how far that is from their common mean, which is what one channel has subtracted,
goes through the kernel into the bias. That is exact but for the border, where zeros are laid around what is preprocessed.
Networks that divide each colour by its own deviation ("torch", or inside the network) have no such form and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ModelError
from ..nn import Module
from .images import IMAGENET_BGR_MEAN
from .matching import plain_name


class Computed:
    """Values made of a file's, in the form of an array that is still in its file (`hdf5.StoredArray`)."""

    packed = True  # so that they are asked for before any tensor changes

    def __init__(self, values: np.ndarray):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def read(self, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            return self.values
        out[...] = self.values
        return out


def for_one_channel(model: Module, layers: Mapping[str, Sequence[tuple[str, Any]]]) -> Mapping[str, Any]:
    """A file's layers for `model`: the first kernel summed over its three channels, if the model takes one channel.

    Raises ModelError for a network whose kernel cannot be summed.
    """
    if (getattr(model, "input_shape", None) or (0,))[-1] != 1:
        return layers
    path = next((path for path, module in model.named_modules() if _kernel(module) is not None), "")
    name = getattr(model, "layer_names", {}).get(path, path.replace(".", "/"))
    tensors = {plain_name(tensor): value for tensor, value in layers.get(name, ())}
    if "kernel" not in tensors or len(tensors["kernel"].shape) != 4 or tensors["kernel"].shape[2] != 3:
        return layers  # made for one channel, or for something else, which the comparison will say
    mode = getattr(model, "preprocessing", "raw")
    advice = "leave input_shape at three channels: preprocess() makes three equal ones of a grey picture"
    if getattr(model, "per_channel", False) or mode == "torch":
        raise ModelError(
            f"{type(model).__name__} normalises each colour by its own mean and deviation, so that kernels for three channels "
            f"cannot be summed into one; {advice}"
        )
    if mode == "caffe" and "bias" not in tensors:
        raise ModelError(f"{type(model).__name__}: the first convolution has no bias to take up the colours' means; {advice}")
    kernel = np.asarray(tensors["kernel"])
    changed = {"kernel": Computed(kernel.sum(2, keepdims=True))}
    if mode == "caffe":
        shift = (IMAGENET_BGR_MEAN.mean() - IMAGENET_BGR_MEAN).astype(kernel.dtype)
        changed["bias"] = Computed(np.asarray(tensors["bias"]) + np.einsum("hwio,i->o", kernel, shift))
    return {**layers, name: [(tensor, changed.get(plain_name(tensor), value)) for tensor, value in layers[name]]}


def _kernel(module: Module) -> Any:
    """The kernel of a module that convolves images, or None."""
    kernel = module._parameters.get("weight", module._parameters.get("kernel"))
    return kernel if kernel is not None and kernel.ndim == 4 else None
