"""NASNet-A, mobile and large: Zoph et al., "Learning Transferable Architectures for Scalable Image Recognition" (2017).

A cell sees the outputs of the two cells before it: `x` of the last one and `p` of the one before, which is first adjusted to
the same size.
"""

from __future__ import annotations

import re
from functools import partial

from ..nn import BatchNorm, Conv2d, Linear, Module, SeparableConv2d, Sequential, Tensor
from ..nn import functional as F
from .base import ImageModel
from .registry import register

norm = partial(BatchNorm, momentum=0.9997, epsilon=1e-3)


class Separable(Module):
    """A rectifier, a separable convolution and a normalisation, twice; the first convolution has the stride.

    At stride 2, padding "same" is what Keras pads by hand.
    """

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1):
        super().__init__()
        self.separable_conv_1 = SeparableConv2d(channels, width, kernel, stride, "same", bias=False)
        self.separable_conv_1_bn = norm(width)
        self.separable_conv_2 = SeparableConv2d(width, width, kernel, padding="same", bias=False)
        self.separable_conv_2_bn = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.separable_conv_1_bn(self.separable_conv_1(F.relu(x)))
        return self.separable_conv_2_bn(self.separable_conv_2(F.relu(x)))


class Projection(Module):
    """Other channels by a 1x1 convolution."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.adjust_conv_projection = Conv2d(channels, width, 1, bias=False)
        self.adjust_bn = norm(width)

    def forward(self, p: Tensor) -> Tensor:
        return self.adjust_bn(self.adjust_conv_projection(F.relu(p)))


class Reduction(Module):
    """Half the height and width: channels from even positions, then as many from odd ones; zero beyond the edge."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.adjust_conv_1 = Conv2d(channels, width // 2, 1, stride=2, bias=False)
        self.adjust_conv_2 = Conv2d(channels, width // 2, 1, stride=2, bias=False)
        self.adjust_bn = norm(width)

    def forward(self, p: Tensor) -> Tensor:
        p = F.relu(p)
        shifted = F.pad(p, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
        return self.adjust_bn(F.concat([self.adjust_conv_1(p), self.adjust_conv_2(shifted)]))


class NormalCell(Module):
    """Six times `width` channels of x's height and width. `adjust` makes p fit and gives `width` channels."""

    def __init__(self, channels: int, width: int, adjust: Module):
        super().__init__()
        self.adjust = adjust
        self.conv_1 = Conv2d(channels, width, 1, bias=False)
        self.bn_1 = norm(width)
        self.left1 = Separable(width, width, 5)
        self.right1 = Separable(width, width, 3)
        self.left2 = Separable(width, width, 5)
        self.right2 = Separable(width, width, 3)
        self.left5 = Separable(width, width, 3)

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        p = self.adjust(p)
        h = self.bn_1(self.conv_1(F.relu(x)))
        x1 = self.left1(h) + self.right1(p)
        x2 = self.left2(p) + self.right2(p)
        x3 = F.avg_pool2d(h, 3, 1, "same") + p
        average = F.avg_pool2d(p, 3, 1, "same")
        x5 = self.left5(h) + h
        return F.concat([p, x1, x2, x3, average + average, x5])


class ReductionCell(Module):
    """Four times `width` channels of half x's height and width. `adjust` makes p fit and gives `p_width` channels."""

    def __init__(self, channels: int, width: int, adjust: Module, p_width: int):
        super().__init__()
        self.adjust = adjust
        self.conv_1 = Conv2d(channels, width, 1, bias=False)
        self.bn_1 = norm(width)
        self.left1 = Separable(width, width, 5, 2)
        self.right1 = Separable(p_width, width, 7, 2)
        self.right2 = Separable(p_width, width, 7, 2)
        self.right3 = Separable(p_width, width, 5, 2)
        self.left4 = Separable(width, width, 3)

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        p = self.adjust(p)
        h = self.bn_1(self.conv_1(F.relu(x)))
        top, left = x.shape[1] % 2, x.shape[2] % 2
        padded = F.pad(h, ((0, 0), (top, 1), (left, 1), (0, 0)))  # its zeros take part in the maximum and in the mean
        largest = F.max_pool2d(padded, 3, 2)
        x1 = self.left1(h) + self.right1(p)
        x2 = largest + self.right2(p)
        x3 = F.avg_pool2d(padded, 3, 2) + self.right3(p)
        x4 = x2 + F.avg_pool2d(x1, 3, 1, "same")
        x5 = self.left4(x1) + largest
        return F.concat([x2, x3, x4, x5])


class NASNet(ImageModel):
    """`depth` normal cells in each of three stages, `stem` channels at first, `width` channels a branch in the first stage.

    skips: whether the first cell after a reduction takes, as p, what the reduction took as p (large) or as x (mobile).
    """

    preprocessing = "tf"
    smallest = 32

    def __init__(self, depth: int, width: int, stem: int, skips: bool, size: int, include_top: bool = True,
                 pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] | None = None):  # fmt: skip
        super().__init__(input_shape or (size, size, 3), include_top, pooling)
        self.skips = skips
        self.stem_conv1 = Conv2d(self.input_shape[2], stem, 3, stride=2, bias=False)
        self.stem_bn1 = norm(stem)
        self.reduction_stem_1 = ReductionCell(stem, width // 4, Sequential(), stem)
        self.reduction_stem_2 = ReductionCell(width, width // 2, Reduction(stem, width // 2), width // 2)
        self.cells: list[str] = []
        channels, before = 2 * width, width  # of x and p
        for stage in range(3):
            if stage:
                name = f"reduction_reduce_{stage * depth}"
                self.cells.append(name)
                self.add_module(name, ReductionCell(channels, width, Projection(before, width), width))
                channels, before = 4 * width, before if skips else channels
            for i in range(depth):
                number = stage * depth + i + (stage > 0)
                adjust = Projection(before, width) if i else Reduction(before, width)
                self.cells.append(f"normal_{number}")
                self.add_module(self.cells[-1], NormalCell(channels, width, adjust))
                channels, before = 6 * width, channels
            width *= 2
        if include_top:
            self.predictions = Linear(channels, classes)
        self.layer_names = {path: file_name(path) for path, _ in self.named_modules()}

    def trunk(self, x: Tensor) -> Tensor:
        x = self.stem_bn1(self.stem_conv1(x))
        x, p = self.reduction_stem_1(x, x), x
        x, p = self.reduction_stem_2(x, p), x
        for name in self.cells:
            keeps_p = self.skips and name.startswith("reduction")
            x, p = getattr(self, name)(x, p), p if keeps_p else x
        return F.relu(x)

    def top(self, x: Tensor) -> Tensor:
        return self.predictions(F.global_avg_pool2d(x))


def file_name(path: str) -> str:
    """A layer's name in Keras's files.

    "normal_0.left1.separable_conv_1_bn" is "separable_conv_1_bn_normal_left1_0", "normal_0.adjust.adjust_bn" is
    "adjust_bn_0", "reduction_stem_1.conv_1" is "reduction_conv_1_stem_1".
    """
    path = re.sub(r"^(normal|reduction)_(\w+)\.(left\d|right\d)\.(\w+)$", r"\4_\1_\3_\2", path)
    path = re.sub(r"^(?:normal|reduction)_(\w+)\.adjust\.(\w+)$", r"\2_\1", path)
    return re.sub(r"^(normal|reduction)_(\w+)\.(\w+)$", r"\1_\3_\2", path)


def _register(kind: str, summary: str, factory: partial, size: int, md5: tuple[str, str], **facts) -> None:
    file = f"https://storage.googleapis.com/tensorflow/keras-applications/nasnet/NASNet-{kind}"
    register(
        f"nasnet_{kind}", factory, f"NASNet-A {kind}, {size}x{size}: {summary}",
        {"imagenet": f"{file}.h5", "imagenet_notop": f"{file}-no-top.h5"},
        md5={"imagenet": md5[0], "imagenet_notop": md5[1]}, top=("predictions",), licence="Apache-2.0",
        input_shape=(size, size, 3), **facts,
    )  # fmt: skip


_register("mobile", "cells found by search, 4 in a stage", partial(NASNet, 4, 44, 32, False, 224), 224,
          ("020fb642bf7360b370c678b08e0adf61", "1ed92395b5b598bdda52abe5c0dbfd63"),
          parameters=5_326_716, top1=74.366, top5=91.854)  # fmt: skip
_register("large", "cells found by search, 6 in a stage", partial(NASNet, 6, 168, 96, True, 331), 331,
          ("11577c9a518f0070763c2b964a382f17", "d81d89dc07e6e56530c4e77faddd61b5"),
          parameters=88_949_818, top1=82.498, top5=96.004)  # fmt: skip
