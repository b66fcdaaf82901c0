"""MobileNetV3, small and large: Howard et al., "Searching for MobileNetV3" (2019)."""

from __future__ import annotations

from functools import partial

from ..errors import ConfigError
from ..nn import BatchNorm, Conv2d, DepthwiseConv2d, Module, Tensor
from ..nn import functional as F
from .base import ImageModel
from .mobilenet_v2 import divisible
from .registry import register

# expansion, width, kernel, stride, squeeze and excite, activation
SMALL = (
    (1, 16, 3, 2, True, "relu"),
    (72 / 16, 24, 3, 2, False, "relu"),
    (88 / 24, 24, 3, 1, False, "relu"),
    (4, 40, 5, 2, True, "hard_swish"),
    (6, 40, 5, 1, True, "hard_swish"),
    (6, 40, 5, 1, True, "hard_swish"),
    (3, 48, 5, 1, True, "hard_swish"),
    (3, 48, 5, 1, True, "hard_swish"),
    (6, 96, 5, 2, True, "hard_swish"),
    (6, 96, 5, 1, True, "hard_swish"),
    (6, 96, 5, 1, True, "hard_swish"),
)
LARGE = (
    (1, 16, 3, 1, False, "relu"),
    (4, 24, 3, 2, False, "relu"),
    (3, 24, 3, 1, False, "relu"),
    (3, 40, 5, 2, True, "relu"),
    (3, 40, 5, 1, True, "relu"),
    (3, 40, 5, 1, True, "relu"),
    (6, 80, 3, 2, False, "hard_swish"),
    (2.5, 80, 3, 1, False, "hard_swish"),
    (2.3, 80, 3, 1, False, "hard_swish"),
    (2.3, 80, 3, 1, False, "hard_swish"),
    (6, 112, 3, 1, True, "hard_swish"),
    (6, 112, 3, 1, True, "hard_swish"),
    (6, 160, 5, 2, True, "hard_swish"),
    (6, 160, 5, 1, True, "hard_swish"),
    (6, 160, 5, 1, True, "hard_swish"),
)
norm = partial(BatchNorm, momentum=0.999, epsilon=1e-3)


class Block(Module):
    """A 1x1 expansion, a depthwise convolution, squeeze and excite, a linear 1x1 projection; a shortcut where shapes agree.

    Only the network's first block has no expansion. At stride 2, padding "same" is what Keras pads by hand.
    """

    def __init__(self, channels: int, inner: int, width: int, kernel: int, stride: int, squeeze: bool, activation: str,
                 expanded: bool):  # fmt: skip
        super().__init__()
        self.expanded, self.squeeze, self.shortcut = expanded, squeeze, stride == 1 and channels == width
        self.activation = getattr(F, activation)
        if expanded:
            self.expand = Conv2d(channels, inner, 1, bias=False)
            self.expand_bn = norm(inner)
        self.depthwise = DepthwiseConv2d(inner, kernel, stride, padding="same", bias=False)
        self.depthwise_bn = norm(inner)
        if squeeze:
            self.squeeze_excite_conv = Conv2d(inner, divisible(inner * 0.25), 1)
            self.squeeze_excite_conv_1 = Conv2d(divisible(inner * 0.25), inner, 1)
        self.project = Conv2d(inner, width, 1, bias=False)
        self.project_bn = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.expand_bn(self.expand(x))) if self.expanded else x
        y = self.activation(self.depthwise_bn(self.depthwise(y)))
        if self.squeeze:
            scale = F.relu(self.squeeze_excite_conv(F.global_avg_pool2d(y, keepdims=True)))
            y = y * F.hard_sigmoid(self.squeeze_excite_conv_1(scale))
        y = self.project_bn(self.project(y))
        return x + y if self.shortcut else y


class MobileNetV3(ImageModel):
    """`blocks` is SMALL or LARGE, `last` the width of the layer before the classifier; layers named as in Keras.

    alpha scales every width but those of the first convolution and, below 1, of the layer before the classifier.
    minimalistic: 3x3 windows, rectifiers only, no squeeze and excite. dropout_rate: before the classifier, in training.
    include_preprocessing: the network takes pixels of 0 to 255; else -1 to 1. `preprocess` gives what it takes.
    """

    preprocessing = "raw"
    smallest = 32
    # Keras 2 named layers "expanded_conv_1/squeeze_excite/Conv_1" and "Conv/BatchNorm"
    former_names = (("/BatchNorm$", "_bn"), ("/", "_"), ("Conv", "conv"), ("^Logits$", "logits"))

    def __init__(self, blocks: tuple, last: int, include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (224, 224, 3), alpha: float = 1.0, minimalistic: bool = False,
                 dropout_rate: float = 0.2, include_preprocessing: bool = True):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        if not alpha > 0:
            raise ConfigError(f"MobileNetV3: alpha={alpha}; expected a positive factor of width such as 0.75 or 1.0")
        self.dropout_rate, self.include_preprocessing = dropout_rate, include_preprocessing
        self.preprocessing = "raw" if include_preprocessing else "tf"
        self.activation = F.relu if minimalistic else F.hard_swish
        channels = 16
        self.conv = Conv2d(input_shape[2], channels, 3, stride=2, padding="same", bias=False)
        self.conv_bn = norm(channels)
        self.block_names = [f"expanded_conv_{i}" if i else "expanded_conv" for i in range(len(blocks))]
        for name, (expansion, width, kernel, stride, squeeze, activation) in zip(self.block_names, blocks, strict=True):
            expanded, width = name != "expanded_conv", divisible(width * alpha)
            inner = divisible(channels * expansion) if expanded else channels
            if minimalistic:
                kernel, squeeze, activation = 3, False, "relu"
            self.add_module(name, Block(channels, inner, width, kernel, stride, squeeze, activation, expanded))
            channels = width
        wide = divisible(channels * 6)
        self.conv_1 = Conv2d(channels, wide, 1, bias=False)
        self.conv_1_bn = norm(wide)
        if include_top:
            last = divisible(last * alpha) if alpha > 1 else last
            self.conv_2 = Conv2d(wide, last, 1)
            self.logits = Conv2d(last, classes, 1)
        self.layer_names = {path: path.replace(".", "_") for path, _ in self.named_modules()}

    def trunk(self, x: Tensor) -> Tensor:
        if self.include_preprocessing:
            x = x * (1 / 127.5) - 1.0
        x = self.activation(self.conv_bn(self.conv(x)))
        for name in self.block_names:
            x = getattr(self, name)(x)
        return self.activation(self.conv_1_bn(self.conv_1(x)))

    def top(self, x: Tensor) -> Tensor:
        x = self.activation(self.conv_2(F.global_avg_pool2d(x, keepdims=True)))
        return F.flatten(self.logits(F.dropout(x, self.dropout_rate, self.training)))


# Weights' names: "imagenet", "imagenet_0.75" for alpha=0.75, "imagenet_minimalistic"; each also with "_notop".
# Top-1 as the paper's authors publish it; they give no top-5.
def _register(size: str, blocks: tuple, last: int, parameters: int, top1: float, md5: dict[str, tuple[str, str]]) -> None:
    folder = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v3"
    files: dict[str, str] = {}
    sums: dict[str, str] = {}
    for name, (whole, trunk) in md5.items():
        kind = {"imagenet": "224_1.0", "imagenet_0.75": "224_0.75", "imagenet_minimalistic": "minimalistic_224_1.0"}[name]
        file = f"{folder}/weights_mobilenet_v3_{size}_{kind}_float"
        files |= {name: f"{file}.h5", f"{name}_notop": f"{file}_no_top_v2.h5"}
        sums |= {name: whole, f"{name}_notop": trunk}
    register(
        f"mobilenet_v3_{size}", partial(MobileNetV3, blocks, last),
        f"MobileNetV3 {size}, 224x224: inverted residuals with squeeze and excite; alpha scales the width",
        files, md5=sums, top=("conv_2", "logits"), licence="Apache-2.0", input_shape=(224, 224, 3), parameters=parameters,
        top1=top1,
    )  # fmt: skip


_register("small", SMALL, 1024, 2_554_968, 68.1, {
    "imagenet": ("8768d4c2e7dee89b9d02b2d03d65d862", "d3e8ec802a04aa4fc771ee12a9a9b836"),
    "imagenet_0.75": ("cb65d4e5be93758266aa0a7f2c6708b7", "ebdb5cc8e0b497cd13a7c275d475c819"),
    "imagenet_minimalistic": ("99cd97fb2fcdad2bf028eb838de69e37", "cde8136e733e811080d9fcd8a252f7e4"),
})  # fmt: skip
_register("large", LARGE, 1280, 5_507_432, 75.6, {
    "imagenet": ("59e551e166be033d707958cf9e29a6a7", "07fb09a5933dd0c8eaafa16978110389"),
    "imagenet_0.75": ("765b44a33ad4005b3ac83185abf1d0eb", "40af19a13ebea4e2ee0c676887f69a2e"),
    "imagenet_minimalistic": ("675e7b876c45c57e9e63e6d90a36599c", "ec5221f64a2f6d1ef965a614bdae7973"),
})  # fmt: skip
