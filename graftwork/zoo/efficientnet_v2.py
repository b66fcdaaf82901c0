"""EfficientNetV2 B0 to B3, S, M and L: Tan and Le, "EfficientNetV2: Smaller Models and Faster Training" (2021).

Pixels (0 to 255) go in: the network scales them itself unless include_preprocessing=False.
"""

from __future__ import annotations

import math
from functools import partial

from ..nn import BatchNorm, Conv2d, DepthwiseConv2d, Linear, Module, Tensor, tensor
from ..nn import functional as F
from .base import ImageModel, drop_path
from .images import IMAGENET_DEVIATION, IMAGENET_MEAN
from .registry import register

# fused or not, blocks, channels, expansion, stride of the first block; all kernels are 3x3, and channels of the stem
STAGES = {
    "b": (32, ((True, 1, 16, 1, 1), (True, 2, 32, 4, 2), (True, 2, 48, 4, 2), (False, 3, 96, 4, 2), (False, 5, 112, 6, 1),
               (False, 8, 192, 6, 2))),
    "s": (24, ((True, 2, 24, 1, 1), (True, 4, 48, 4, 2), (True, 4, 64, 4, 2), (False, 6, 128, 4, 2), (False, 9, 160, 6, 1),
               (False, 15, 256, 6, 2))),
    "m": (24, ((True, 3, 24, 1, 1), (True, 5, 48, 4, 2), (True, 5, 80, 4, 2), (False, 7, 160, 4, 2), (False, 14, 176, 6, 1),
               (False, 18, 304, 6, 2), (False, 5, 512, 6, 1))),
    "l": (32, ((True, 4, 32, 1, 1), (True, 7, 64, 4, 2), (True, 7, 96, 4, 2), (False, 10, 192, 4, 2), (False, 19, 224, 6, 1),
               (False, 25, 384, 6, 2), (False, 7, 640, 6, 1))),
}  # fmt: skip
norm = partial(BatchNorm, momentum=0.9, epsilon=1e-3)


class Block(Module):
    """EfficientNet's block: 1x1 expansion, 3x3 depthwise convolution, squeeze and excitation, 1x1 projection, shortcut."""

    def __init__(self, channels: int, out_channels: int, stride: int, expansion: int, drop: float):
        super().__init__()
        inner, squeezed = channels * expansion, max(1, channels // 4)
        self.shortcut, self.drop = stride == 1 and channels == out_channels, drop
        self.expand_conv = Conv2d(channels, inner, 1, bias=False)
        self.expand_bn = norm(inner)
        self.dwconv2 = DepthwiseConv2d(inner, 3, stride, padding="same", bias=False)
        self.bn = norm(inner)
        self.se_reduce = Conv2d(inner, squeezed, 1)
        self.se_expand = Conv2d(squeezed, inner, 1)
        self.project_conv = Conv2d(inner, out_channels, 1, bias=False)
        self.project_bn = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.expand_bn(self.expand_conv(x)))
        y = F.silu(self.bn(self.dwconv2(y)))
        gate = F.silu(self.se_reduce(F.global_avg_pool2d(y, keepdims=True)))
        y = y * F.sigmoid(self.se_expand(gate))
        y = self.project_bn(self.project_conv(y))
        return drop_path(y, self.drop, self.training) + x if self.shortcut else y


class FusedBlock(Module):
    """One 3x3 convolution in place of expansion and depthwise convolution; without expansion it is the whole block."""

    def __init__(self, channels: int, out_channels: int, stride: int, expansion: int, drop: float):
        super().__init__()
        inner = channels * expansion
        self.expanded, self.shortcut, self.drop = expansion > 1, stride == 1 and channels == out_channels, drop
        if self.expanded:
            self.expand_conv = Conv2d(channels, inner, 3, stride, padding="same", bias=False)
            self.expand_bn = norm(inner)
            self.project_conv = Conv2d(inner, out_channels, 1, bias=False)
        else:
            self.project_conv = Conv2d(inner, out_channels, 3, stride, padding="same", bias=False)
        self.project_bn = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.expanded:
            y = F.silu(self.expand_bn(self.expand_conv(x)))
            y = self.project_bn(self.project_conv(y))
        else:
            y = F.silu(self.project_bn(self.project_conv(x)))
        return drop_path(y, self.drop, self.training) + x if self.shortcut else y


class EfficientNetV2(ImageModel):
    """Layers named as in Keras's files. `width` and `depth` scale channels and blocks of the stages of `variant`.

    include_preprocessing: scale pixels inside the network, those of B0 to B3 by ImageNet's mean and deviation, all others
    to -1 to 1. drop_connect_rate: how often training leaves out the last block, earlier ones less.
    """

    preprocessing = "raw"
    smallest = 32

    def __init__(self, variant: str, width: float, depth: float, include_top: bool = True, pooling: str | None = None,
                 classes: int = 1000, input_shape: tuple[int, int, int] = (224, 224, 3), include_preprocessing: bool = True,
                 drop_connect_rate: float = 0.2):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        self.include_preprocessing, self.per_channel = include_preprocessing, include_preprocessing and variant == "b"
        stem, stages = STAGES[variant]
        channels = divisible(stem * width)
        self.stem_conv = Conv2d(input_shape[2], channels, 3, stride=2, padding="same", bias=False)
        self.stem_bn = norm(channels)
        total = sum(blocks for _, blocks, *_ in stages)  # before scaling, as in Keras
        self.block_names: list[str] = []
        for number, (fused, blocks, out_channels, expansion, stride) in enumerate(stages):
            out_channels = divisible(out_channels * width)
            for i in range(math.ceil(depth * blocks)):
                drop = drop_connect_rate * len(self.block_names) / total
                self.block_names.append(f"block{number + 1}{chr(ord('a') + i)}")
                kind = FusedBlock if fused else Block
                self.add_module(self.block_names[-1], kind(channels, out_channels, 1 if i else stride, expansion, drop))
                channels = out_channels
        last = divisible(1280 * width)
        self.top_conv = Conv2d(channels, last, 1, bias=False)
        self.top_bn = norm(last)
        if include_top:
            self.predictions = Linear(last, classes)
        self.layer_names = {path: path.replace(".", "_") for path, _ in self.named_modules()}

    def scaled(self, x: Tensor) -> Tensor:
        """Pixels as the published weights expect them."""
        if not self.include_preprocessing:
            return x
        if not (self.per_channel and self.input_shape[2] == 3):
            return x * (1 / 128) - 1
        mean, deviation = (tensor(a, dtype=x.dtype, device=x.device) for a in (IMAGENET_MEAN, IMAGENET_DEVIATION))
        return (x * (1 / 255) - mean) / deviation

    def trunk(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem_bn(self.stem_conv(self.scaled(x))))
        for name in self.block_names:
            x = getattr(self, name)(x)
        return F.silu(self.top_bn(self.top_conv(x)))

    def top(self, x: Tensor) -> Tensor:
        return self.predictions(F.dropout(F.global_avg_pool2d(x), 0.2, self.training))


def divisible(width: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`."""
    return max(divisor, int(width + divisor / 2) // divisor * divisor)


def _register(name: str, scale: tuple[float, float], side: int, parameters: int, top1: float, top5: float,
              md5: tuple[str, str]) -> None:  # fmt: skip
    file = f"https://storage.googleapis.com/tensorflow/keras-applications/efficientnet_v2/efficientnetv2-{name}"
    register(
        f"efficientnet_v2_{name}",
        partial(EfficientNetV2, name[0], *scale, input_shape=(side, side, 3)),
        f"EfficientNetV2-{name.upper()}, {side}x{side}: fused inverted residuals first, depthwise ones later",
        {"imagenet": f"{file}.h5", "imagenet_notop": f"{file}_notop.h5"},
        md5={"imagenet": md5[0], "imagenet_notop": md5[1]}, top=("predictions",), licence="Apache-2.0",
        input_shape=(side, side, 3), parameters=parameters, top1=top1, top5=top5,
    )  # fmt: skip


# width, depth; side of the pictures; parameters; accuracies as keras.io lists them; md5 with and without top
_register("b0", (1.0, 1.0), 224, 7_200_312, 78.7, 94.3,
          ("21ecbf6da12460d5c40bb2f29ceb2188", "893217f2bb855e2983157299931e43ff"))  # fmt: skip
_register("b1", (1.0, 1.1), 240, 8_212_124, 79.8, 95.0,
          ("069f0534ff22adf035c89e2d9547a9dc", "0e80663031ca32d657f9caa404b6ec37"))  # fmt: skip
_register("b2", (1.1, 1.2), 260, 10_178_374, 80.5, 95.1,
          ("424e49f28180edbde1e94797771950a7", "1dfe2e7a5d45b6632553a8961ea609eb"))  # fmt: skip
_register("b3", (1.2, 1.4), 300, 14_467_622, 82.0, 95.8,
          ("1f1fc43bd98a6e4fd8fdfd551e02c7a0", "f6abf7b5849ac99a89b50dd3fd532856"))  # fmt: skip
_register("s", (1.0, 1.0), 384, 21_612_360, 83.9, 96.7,
          ("e1d88a8495beba45748fedd0cecbe016", "af0682fb74e8c54910f2d4393339c070"))  # fmt: skip
_register("m", (1.0, 1.0), 480, 54_431_388, 85.3, 97.4,
          ("a3bf6aa3276309f4fc6a34aa114c95cd", "1b8dc055df72dde80d614482840fe342"))  # fmt: skip
_register("l", (1.0, 1.0), 480, 119_027_848, 85.7, 97.5,
          ("27e6d408b53c7ebc868fefa357689935", "b0b66b5c863aef5b46e8608fe1711615"))  # fmt: skip
