"""What all image models of the zoo share: preprocessing, a trunk, a top, and predictions from pictures."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ModelError, ShapeError
from ..nn import Module, Tensor, no_grad, tensor
from ..nn import functional as F
from ..nn.modules.module import listen
from . import images


class ImageModel(Module):
    """Base of the zoo's image networks.

    A subclass sets `preprocessing` and defines `trunk(x)` -> feature map and `top(x)` -> logits. `input_shape` is
    (height, width, channels) of what `preprocess` makes; no side may be below `smallest` pixels.
    """

    preprocessing = "tf"
    smallest = 1
    per_channel = False  # whether the network itself normalises colour channels apart from each other
    former_names: tuple[tuple[str, str], ...] = ()  # how to make today's layer names of a file's: pattern, replacement
    labels: Sequence[str] | None = None  # names of the classes, of a network created with weights that come with them
    counted_names: tuple[str, ...] = ()  # classes whose layers Keras names and counts itself: "conv2d", "conv2d_1", ...

    def __init__(self, input_shape: tuple[int, int, int], include_top: bool, pooling: str | None):
        super().__init__()
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise ShapeError(f"input_shape={input_shape}; expected (height, width, channels)")
        if min(input_shape[:2]) < self.smallest:
            raise ShapeError(
                f"{type(self).__name__}: input_shape={input_shape}; this network shrinks images {self.smallest} times, so "
                f"height and width must be at least {self.smallest}"
            )
        self.input_shape, self.include_top, self.pooling = tuple(input_shape), include_top, pooling

    def trunk(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no trunk(); define the convolutional part there")

    def top(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no top(); define the classifier there")

    def forward(self, x: Tensor) -> Tensor:
        """Logits with the top; without it the feature map, or one vector an image with `pooling`."""
        self._check(x)
        x = self.trunk(x)
        return self.top(x) if self.include_top else self.pooled(x, self.pooling)

    def pooled(self, x: Tensor, pooling: str | None) -> Tensor:
        """What `pooling` makes of the trunk's feature map x."""
        return pool(x, pooling)

    def features(self, x: Tensor, pooling: str | None = "auto", layers: Sequence[str] | None = None) -> Any:
        """Deep features: the trunk's output, or what any layers give.

        pooling: "avg" or "max" for (batch, channels), None for the feature map; by default "avg" for the trunk's output, and
        None for `layers`. layers: names as in files ("conv4_block6_1_conv") or paths of modules ("conv4.block6"); the result
        is then {name: activation}. A layer of the top runs only if the model has one. A name stands for what its module
        returns, which for a convolution of a network that normalises afterwards is the convolution alone. Raises ModelError
        for names that the model does not have.
        """
        self._check(x)
        if pooling not in (None, "avg", "max", "auto"):
            raise ModelError(f"pooling={pooling!r}; expected None, 'avg' or 'max'")
        if layers is None:
            return self.pooled(self.trunk(x), "avg" if pooling == "auto" else pooling)
        modules = {name: self._layer(name) for name in ([layers] if isinstance(layers, str) else layers)}
        with listen(list(modules.values())) as heard:
            x = self.trunk(x)
            if self.include_top and any(heard(module) is None for module in modules.values()):
                self.top(x)
            found = {name: heard(module) for name, module in modules.items()}
        silent = [name for name, value in found.items() if value is None]
        if silent:
            raise ModelError(f"{type(self).__name__}: {', '.join(silent)} took no part in this pass; ask for layers around")
        if pooling in ("avg", "max"):
            found = {name: pool(value, pooling) if value.ndim == 4 else value for name, value in found.items()}
        return found

    def layers(self) -> dict[str, Module]:
        """Every module by its name in files, or by its path with slashes where files do not name it."""
        names = getattr(self, "layer_names", {})
        return {names.get(path, path.replace(".", "/")): module for path, module in self.named_modules() if path}

    def _layer(self, name: str) -> Module:
        by_name, by_path = self.layers(), {path: module for path, module in self.named_modules() if path}
        for table, key in ((by_name, name), (by_path, name.replace("/", "."))):
            if key in table:
                return table[key]
        close = difflib.get_close_matches(name, [*by_name, *by_path], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"its first layers are {', '.join([*by_name][:5])}"
        raise ModelError(f"{type(self).__name__} has no layer {name!r}; {hint} (`model.layers()` has all)")

    def _check(self, x: Tensor) -> None:
        channels = self.input_shape[2]
        if x.ndim != 4 or x.shape[3] != channels:
            raise ShapeError(
                f"{type(self).__name__}: input has shape {x.shape}, expected (batch, height, width, {channels}); "
                "model.preprocess(images) makes it"
            )

    def preprocess(self, pictures: Any) -> Tensor:
        """Paths, Pillow images or uint8 arrays (one or many) as the input the weights were trained on."""
        height, width, channels = self.input_shape
        return self.normalise(images.to_batch(pictures, (height, width), channels))

    def normalise(self, pixels: np.ndarray) -> Tensor:
        """uint8 pixels (batch, height, width, channels) in the value range of the weights' training, on the model's device."""
        return tensor(images.normalise(pixels, self.preprocessing), device=self.device)

    def predict(self, pictures: Any) -> np.ndarray:
        """Class probabilities (images, classes) for pictures."""
        with no_grad():
            return F.softmax(self(self.preprocess(pictures))).numpy()


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth (Huang et al. 2016): in training a whole image's branch is zero with probability `rate`."""
    if not training or rate == 0.0:
        return x
    ones = tensor(np.ones((x.shape[0], *[1] * (x.ndim - 1))), dtype=x.dtype, device=x.device)
    return x * F.dropout(ones, rate)


def pool(x: Tensor, pooling: str | None) -> Tensor:
    """A feature map as it is (None), or its "avg" or "max" over positions."""
    if pooling is None:
        return x
    return F.global_avg_pool2d(x) if pooling == "avg" else F.global_max_pool2d(x)
