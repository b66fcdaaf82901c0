"""MobileNetV2: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018)."""

from __future__ import annotations

from functools import partial

from ..errors import ConfigError
from ..nn import BatchNorm, Conv2d, DepthwiseConv2d, Linear, Module, Tensor
from ..nn import functional as F
from .base import ImageModel
from .registry import register

# channels, blocks, stride of the first block; from the second stage on, blocks expand six times
STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)  # alphas with published weights
norm = partial(BatchNorm, momentum=0.999, epsilon=1e-3)


class Block(Module):
    """A 1x1 expansion, a 3x3 depthwise convolution and a linear 1x1 projection, around a shortcut where shapes agree.

    At stride 2, padding "same" is (0, 1) for even sizes and (1, 1) for odd ones, which is what Keras pads by hand.
    """

    def __init__(self, channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        inner = channels * expansion
        self.expanded, self.shortcut = expansion > 1, stride == 1 and channels == out_channels
        if self.expanded:
            self.expand = Conv2d(channels, inner, 1, bias=False)
            self.expand_BN = norm(inner)
        self.depthwise = DepthwiseConv2d(inner, 3, stride, padding="same", bias=False)
        self.depthwise_BN = norm(inner)
        self.project = Conv2d(inner, out_channels, 1, bias=False)
        self.project_BN = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand_BN(self.expand(x))) if self.expanded else x
        y = F.relu6(self.depthwise_BN(self.depthwise(y)))
        y = self.project_BN(self.project(y))
        return x + y if self.shortcut else y


class MobileNetV2(ImageModel):
    """Layers named as in Keras's files. `alpha` scales every width but, below 1, that of the last convolution."""

    preprocessing = "tf"
    smallest = 32
    former_names = (("^Logits$", "predictions"),)  # what the classifier was called when the files were published

    def __init__(self, include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (224, 224, 3), alpha: float = 1.0):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        if not alpha > 0:
            raise ConfigError(f"MobileNetV2: alpha={alpha}; expected a positive factor of width such as 0.5 or 1.0")
        channels = divisible(32 * alpha)
        self.Conv1 = Conv2d(input_shape[2], channels, 3, stride=2, padding="same", bias=False)
        self.bn_Conv1 = norm(channels)
        self.block_names: list[str] = []
        for width, depth, first_stride in STAGES:
            out_channels = divisible(int(width * alpha))
            for i in range(depth):
                number = len(self.block_names)
                self.block_names.append(f"block_{number}" if number else "expanded_conv")
                block = Block(channels, out_channels, first_stride if i == 0 else 1, expansion=6 if number else 1)
                self.add_module(self.block_names[-1], block)
                channels = out_channels
        last = divisible(1280 * max(alpha, 1.0))
        self.Conv_1 = Conv2d(channels, last, 1, bias=False)
        self.Conv_1_bn = norm(last)
        if include_top:
            self.predictions = Linear(last, classes)
        self.layer_names = {path: path.replace(".", "_") for path, _ in self.named_modules()}

    def trunk(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn_Conv1(self.Conv1(x)))
        for name in self.block_names:
            x = getattr(self, name)(x)
        return F.relu6(self.Conv_1_bn(self.Conv_1(x)))

    def top(self, x: Tensor) -> Tensor:
        return self.predictions(F.global_avg_pool2d(x))


def divisible(width: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, but never more than 10 % below `width`."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


def _published() -> dict[str, str]:
    """Names of weights: "imagenet" for alpha=1.0, "imagenet_0.5" for alpha=0.5, ..., each also with "_notop"."""
    folder = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2"
    files: dict[str, str] = {}
    for alpha in WIDTHS:
        name = "imagenet" if alpha == 1.0 else f"imagenet_{alpha}"
        file = f"{folder}/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224"
        files |= {name: f"{file}.h5", f"{name}_notop": f"{file}_no_top.h5"}
    return files


register(
    "mobilenet_v2", MobileNetV2, "MobileNetV2, 224x224: inverted residuals with depthwise convolutions; alpha scales the width",
    _published(), top=("predictions",), licence="Apache-2.0", input_shape=(224, 224, 3), parameters=3_538_984,
    top1=71.336, top5=90.142,
)  # fmt: skip
