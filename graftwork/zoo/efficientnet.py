"""EfficientNet B0 to B7: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019).

Pixels (0 to 255) go in: the network normalises them itself, by a mean and a variance that its weights file holds.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from ..nn import BatchNorm, Conv2d, DepthwiseConv2d, Linear, Module, Tensor, tensor
from ..nn import functional as F
from .base import ImageModel, drop_path
from .images import IMAGENET_DEVIATION
from .registry import register

# kernel, blocks, channels, expansion, stride of the first block
STAGES = ((3, 1, 16, 1, 1), (3, 2, 24, 6, 2), (5, 2, 40, 6, 2), (3, 3, 80, 6, 2), (5, 3, 112, 6, 1), (5, 4, 192, 6, 2),
          (3, 1, 320, 6, 1))  # fmt: skip
EPSILON = 1e-7  # Keras's smallest deviation
norm = partial(BatchNorm, momentum=0.99, epsilon=1e-3)


class Normalization(Module):
    """Pixels by a mean and a variance for each channel of values from 0 to 1; `count` is kept for the file's sake.

    The published ImageNet files hold the deviations where the variances belong, and Keras divides once more by their roots
    when it fetches one of those files, as the authors' network did. Here such a file is known by its values, wherever it
    lies and whoever saved it again, so `weights="imagenet"` and a path give the same network.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", tensor(np.zeros(channels, np.float32)))
        self.register_buffer("variance", tensor(np.ones(channels, np.float32)))
        self.register_buffer("count", tensor(np.zeros((), np.int32)))

    def forward(self, x: Tensor) -> Tensor:
        deviation = F.sqrt(self.variance)
        floor = tensor(np.full(self.variance.shape, EPSILON), dtype=x.dtype, device=x.device)
        x = (x * (1 / 255) - self.mean) / F.maximum(deviation, floor)
        return x if self.variance.shape != IMAGENET_DEVIATION.shape else x / self.authors_root(deviation)

    def authors_root(self, deviation: Tensor) -> Tensor:
        """The root to divide by once more: of the deviations in a published file, 1 for any other."""
        published = tensor(IMAGENET_DEVIATION, dtype=deviation.dtype, device=deviation.device)
        differs = F.max(F.abs(self.variance - published)) > 1e-3  # more than float16 rounds; a true variance is 0.05
        return F.where(differs, deviation * 0 + 1, deviation)


class Block(Module):
    """A 1x1 expansion, a depthwise convolution, squeeze and excitation, and a linear 1x1 projection around a shortcut.

    At stride 2, padding "same" is what Keras pads by hand: one pixel less above and left for even sizes.
    """

    def __init__(self, channels: int, out_channels: int, size: int, stride: int, expansion: int, drop: float):
        super().__init__()
        inner, squeezed = channels * expansion, max(1, channels // 4)
        self.expanded, self.shortcut, self.drop = expansion > 1, stride == 1 and channels == out_channels, drop
        if self.expanded:
            self.expand_conv = Conv2d(channels, inner, 1, bias=False)
            self.expand_bn = norm(inner)
        self.dwconv = DepthwiseConv2d(inner, size, stride, padding="same", bias=False)
        self.bn = norm(inner)
        self.se_reduce = Conv2d(inner, squeezed, 1)
        self.se_expand = Conv2d(squeezed, inner, 1)
        self.project_conv = Conv2d(inner, out_channels, 1, bias=False)
        self.project_bn = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.expand_bn(self.expand_conv(x))) if self.expanded else x
        y = F.silu(self.bn(self.dwconv(y)))
        gate = F.silu(self.se_reduce(F.global_avg_pool2d(y, keepdims=True)))
        y = y * F.sigmoid(self.se_expand(gate))
        y = self.project_bn(self.project_conv(y))
        return drop_path(y, self.drop, self.training) + x if self.shortcut else y


class EfficientNet(ImageModel):
    """Layers named as in Keras's files. `width` and `depth` scale channels and blocks of B0.

    drop_connect_rate: how often training leaves out the last block, earlier ones less; dropout before the classifier.
    """

    preprocessing = "raw"
    smallest = 32
    per_channel = True
    counted_names = ("normalization",)

    def __init__(self, width: float, depth: float, dropout: float, include_top: bool = True, pooling: str | None = None,
                 classes: int = 1000, input_shape: tuple[int, int, int] = (224, 224, 3),
                 drop_connect_rate: float = 0.2):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        self.dropout = dropout
        self.normalization = Normalization(input_shape[2])
        channels = divisible(32 * width)
        self.stem_conv = Conv2d(input_shape[2], channels, 3, stride=2, padding="same", bias=False)
        self.stem_bn = norm(channels)
        repeats = [math.ceil(depth * blocks) for _, blocks, *_ in STAGES]
        self.block_names: list[str] = []
        for number, (size, _, out_channels, expansion, stride) in enumerate(STAGES):
            out_channels = divisible(out_channels * width)
            for i in range(repeats[number]):
                drop = drop_connect_rate * len(self.block_names) / sum(repeats)
                self.block_names.append(f"block{number + 1}{chr(ord('a') + i)}")
                block = Block(channels, out_channels, size, stride if i == 0 else 1, expansion, drop)
                self.add_module(self.block_names[-1], block)
                channels = out_channels
        last = divisible(1280 * width)
        self.top_conv = Conv2d(channels, last, 1, bias=False)
        self.top_bn = norm(last)
        if include_top:
            self.predictions = Linear(last, classes)
        self.layer_names = {path: path.replace(".", "_") for path, _ in self.named_modules()}

    def trunk(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem_bn(self.stem_conv(self.normalization(x))))
        for name in self.block_names:
            x = getattr(self, name)(x)
        return F.silu(self.top_bn(self.top_conv(x)))

    def top(self, x: Tensor) -> Tensor:
        return self.predictions(F.dropout(F.global_avg_pool2d(x), self.dropout, self.training))


def divisible(width: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, but never more than 10 % below `width`."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


def _register(number: int, scale: tuple[float, float, float], side: int, parameters: int, top1: float, top5: float,
              md5: tuple[str, str]) -> None:  # fmt: skip
    file = f"https://storage.googleapis.com/keras-applications/efficientnetb{number}"
    register(
        f"efficientnet_b{number}",
        partial(EfficientNet, *scale, input_shape=(side, side, 3)),
        f"EfficientNet-B{number}, {side}x{side}: inverted residuals with squeeze and excitation, scaled in width and depth",
        {"imagenet": f"{file}.h5", "imagenet_notop": f"{file}_notop.h5"},
        md5={"imagenet": md5[0], "imagenet_notop": md5[1]}, top=("predictions",), licence="Apache-2.0",
        input_shape=(side, side, 3), parameters=parameters, top1=top1, top5=top5,
    )  # fmt: skip


# width, depth, dropout; side of the pictures; parameters; accuracies as keras.io lists them; md5 with and without top
_register(0, (1.0, 1.0, 0.2), 224, 5_330_571, 77.1, 93.3,
          ("902e53a9f72be733fc0bcb005b3ebbac", "50bc09e76180e00e4465e1a485ddc09d"))  # fmt: skip
_register(1, (1.0, 1.1, 0.2), 240, 7_856_239, 79.1, 94.4,
          ("1d254153d4ab51201f1646940f018540", "74c4e6b3e1f6a1eea24c589628592432"))  # fmt: skip
_register(2, (1.1, 1.2, 0.3), 260, 9_177_569, 80.1, 94.9,
          ("b15cce36ff4dcbd00b6dd88e7857a6ad", "111f8e2ac8aa800a7a99e3239f7bfb39"))  # fmt: skip
_register(3, (1.2, 1.4, 0.3), 300, 12_320_535, 81.6, 95.7,
          ("ffd1fdc53d0ce67064dc6a9c7960ede0", "af6d107764bb5b1abb91932881670226"))  # fmt: skip
_register(4, (1.4, 1.8, 0.4), 380, 19_466_823, 82.9, 96.4,
          ("18c95ad55216b8f92d7e70b3a046e2fc", "ebc24e6d6c33eaebbd558eafbeedf1ba"))  # fmt: skip
_register(5, (1.6, 2.2, 0.4), 456, 30_562_527, 83.6, 96.7,
          ("ace28f2a6363774853a83a0b21b9421a", "38879255a25d3c92d5e44e04ae6cec6f"))  # fmt: skip
_register(6, (1.8, 2.6, 0.5), 528, 43_265_143, 84.0, 96.8,
          ("165f6e37dce68623721b423839de8be5", "9ecce42647a20130c1f39a5d4cb75743"))  # fmt: skip
_register(7, (2.0, 3.1, 0.5), 600, 66_658_687, 84.3, 97.0,
          ("8c03f828fec3ef71311cd463b6759d99", "cbcfe4450ddf6f3ad90b1b398090fe4a"))  # fmt: skip
