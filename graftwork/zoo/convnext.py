"""ConvNeXt tiny to xlarge: Liu et al., "A ConvNet for the 2020s" (2022).

Pixels (0 to 255) go in: the network normalises them itself unless include_preprocessing=False.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..nn import Conv2d, LayerNorm, Linear, Module, Parameter, Tensor, init, tensor
from ..nn import functional as F
from .base import ImageModel, drop_path, pool
from .images import IMAGENET_DEVIATION, IMAGENET_MEAN
from .registry import register

WIDTHS = {"tiny": (96, 192, 384, 768), "small": (96, 192, 384, 768), "base": (128, 256, 512, 1024),
          "large": (192, 384, 768, 1536), "xlarge": (256, 512, 1024, 2048)}  # fmt: skip
DEPTHS = {"tiny": (3, 3, 9, 3)}  # blocks in each stage; (3, 3, 27, 3) for all others
EPSILON = 1e-6
norm = partial(LayerNorm, epsilon=EPSILON)


class Stem(Module):
    """A convolution of 4x4 patches, then layer normalisation; one layer in Keras's files, so one module here."""

    keras_class = "Sequential"
    keras_inner = (("conv", "Conv2D", 2), ("layernorm", "LayerNormalization", 2))

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.kernel, self.bias = _patches(4, channels, width)
        self.gamma, self.beta = _scale(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(F.conv2d(x, self.kernel, self.bias, stride=4), self.gamma, self.beta, EPSILON)


class Downsampling(Module):
    """Layer normalisation, then a convolution of 2x2 patches; one layer in Keras's files as well."""

    keras_class = "Sequential"
    keras_inner = (("layernorm", "LayerNormalization", 2), ("conv", "Conv2D", 2))

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.gamma, self.beta = _scale(channels)
        self.kernel, self.bias = _patches(2, channels, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.layer_norm(x, self.gamma, self.beta, EPSILON), self.kernel, self.bias, stride=2)


def _patches(size: int, channels: int, width: int) -> tuple[Parameter, Parameter]:
    return Parameter(init.he_normal((size, size, channels, width))), Parameter(np.zeros(width, np.float32))


def _scale(width: int) -> tuple[Parameter, Parameter]:
    return Parameter(np.ones(width, np.float32)), Parameter(np.zeros(width, np.float32))


class LayerScale(Module):
    """A learned factor for each channel, tiny at first. Keras's files call it "variable"."""

    def __init__(self, width: int):
        super().__init__()
        self.variable = Parameter(np.full(width, 1e-6, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.variable


class Block(Module):
    """A 7x7 depthwise convolution, layer normalisation, two dense layers over channels, and a shortcut around all."""

    def __init__(self, width: int, drop: float):
        super().__init__()
        self.drop = drop
        self.depthwise_conv = Conv2d(width, width, 7, padding="same", groups=width)
        self.layernorm = norm(width)
        self.pointwise_conv_1 = Linear(width, 4 * width)
        self.pointwise_conv_2 = Linear(4 * width, width)
        self.layer_scale = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layernorm(self.depthwise_conv(x))
        y = self.pointwise_conv_2(F.gelu(self.pointwise_conv_1(y)))
        return x + drop_path(self.layer_scale(y), self.drop, self.training)


class ConvNeXt(ImageModel):
    """Layers named as in Keras's files. Pooled features are normalised, with the top and without, as Keras does.

    include_preprocessing: normalise pixels inside the network (three channels only, as in Keras). drop_path_rate: how often
    training leaves out the last block, earlier ones less.
    """

    preprocessing = "raw"
    smallest = 32
    counted_names = ("layer_normalization",)

    def __init__(self, variant: str, include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (224, 224, 3), include_preprocessing: bool = True,
                 drop_path_rate: float = 0.0):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        self.include_preprocessing = self.per_channel = include_preprocessing
        depths, widths = DEPTHS.get(variant, (3, 3, 27, 3)), WIDTHS[variant]
        drops = np.linspace(0.0, drop_path_rate, sum(depths)).tolist()
        self.stem = Stem(input_shape[2], widths[0])
        self.steps: list[str] = ["stem"]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if stage:
                self._add(f"downsampling_block_{stage - 1}", Downsampling(widths[stage - 1], width))
            for i in range(depth):
                self._add(f"stage_{stage}_block_{i}", Block(width, drops[sum(depths[:stage]) + i]))
        self.head_layernorm = norm(widths[-1])
        if include_top:
            self.head_dense = Linear(widths[-1], classes)
        self.layer_names = {path: f"convnext_{variant}_{path.replace('.', '_')}" for path, _ in self.named_modules()}
        head = self.layer_names["head_layernorm"]
        if include_top:  # without a top, Keras numbers the last normalisation; the weights are those of the head
            self.former_names = ((r"^layer_normalization(_\d+)?$", head),)
        else:
            self.former_names = ((f"^{head}$", "layer_normalization"),)
            self.layer_names["head_layernorm"] = "layer_normalization"

    def _add(self, name: str, module: Module) -> None:
        self.steps.append(name)
        self.add_module(name, module)

    def trunk(self, x: Tensor) -> Tensor:
        if self.include_preprocessing and self.input_shape[2] == 3:
            mean, deviation = (tensor(255 * a, dtype=x.dtype, device=x.device) for a in (IMAGENET_MEAN, IMAGENET_DEVIATION))
            x = (x - mean) / deviation
        for name in self.steps:
            x = getattr(self, name)(x)
        return x

    def pooled(self, x: Tensor, pooling: str | None) -> Tensor:
        return self.head_layernorm(pool(x, pooling))

    def top(self, x: Tensor) -> Tensor:
        return self.head_dense(self.pooled(x, "avg"))


def _register(variant: str, parameters: int, sha256: tuple[str, str], top1: float) -> None:
    name = f"convnext_{variant}"
    file = f"https://storage.googleapis.com/tensorflow/keras-applications/convnext/{name}"
    register(
        name,
        partial(ConvNeXt, variant),
        f"ConvNeXt-{variant.capitalize()}, 224x224: 7x7 depthwise convolutions and dense layers over channels",
        {"imagenet": f"{file}.h5", "imagenet_notop": f"{file}_notop.h5"},
        sha256={"imagenet": sha256[0], "imagenet_notop": sha256[1]}, top=(f"{name}_head_dense",), licence="Apache-2.0 (Keras "
        "conversion), MIT (original)", input_shape=(224, 224, 3), parameters=parameters, top1=top1,
    )  # fmt: skip


# parameters; sha256 with and without top; accuracy as keras.io lists it (it lists no top-5)
_register("tiny", 28_589_128, ("8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff",
          "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1"), 81.3)  # fmt: skip
_register("small", 50_223_688, ("ce1277d8f1ee5a0ef0e171469089c18f5233860ceaf9b168049cb9263fd7483c",
          "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab"), 82.3)  # fmt: skip
_register("base", 88_591_464, ("52cbb006d3dadd03f6e095a8ca1aca47aecdd75acb4bc74bce1f5c695d0086e6",
          "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45"), 85.3)  # fmt: skip
_register("large", 197_767_336, ("070c5ed9ed289581e477741d3b34beffa920db8cf590899d6d2c67fba2a198a6",
          "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd"), 86.3)  # fmt: skip
_register("xlarge", 350_196_968, ("c1f5ccab661354fc3a79a10fa99af82f0fbf10ec65cb894a3ae0815f17a889ee",
          "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05"), 86.7)  # fmt: skip
