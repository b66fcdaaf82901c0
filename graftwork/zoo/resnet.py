"""ResNet-50, 101 and 152, and their V2 forms.

V1: He et al., "Deep Residual Learning for Image Recognition" (2015); V2, which normalises before it convolves: He et al.,
"Identity Mappings in Deep Residual Networks" (2016). As in Keras's files, V1 strides on a block's first 1x1 convolution and
V2 on the 3x3 convolution of a stage's last block.
"""

from __future__ import annotations

import re
from functools import partial

from ..nn import BatchNorm, Conv2d, Linear, Module, Sequential, Tensor
from ..nn import functional as F
from .base import ImageModel
from .registry import register

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # blocks in each of the four stages
FORMER_NAMES = (("^(probs|fc1000)$", "predictions"),)  # what the classifier was called when the files were published
norm = partial(BatchNorm, epsilon=1.001e-5)


class Block(Module):
    """V1: 1x1, 3x3 and 1x1 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int = 1):
        super().__init__()
        self.projected = channels != 4 * width
        if self.projected:
            self.conv0 = Conv2d(channels, 4 * width, 1, stride)
            self.bn0 = norm(4 * width)
        self.conv1 = Conv2d(channels, width, 1, stride)
        self.bn1 = norm(width)
        self.conv2 = Conv2d(width, width, 3, padding="same")
        self.bn2 = norm(width)
        self.conv3 = Conv2d(width, 4 * width, 1)
        self.bn3 = norm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.bn0(self.conv0(x)) if self.projected else x
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(shortcut + self.bn3(self.conv3(x)))


class BlockV2(Module):
    """V2: normalisation and rectifier come first; the sum is left as it is. A stride thins the shortcut out."""

    def __init__(self, channels: int, width: int, stride: int = 1):
        super().__init__()
        self.stride, self.projected = stride, channels != 4 * width
        self.preact_bn = norm(channels)
        if self.projected:
            self.conv0 = Conv2d(channels, 4 * width, 1, stride)
        self.conv1 = Conv2d(channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = Conv2d(width, 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.preact_bn(x))
        shortcut = self.conv0(y) if self.projected else self.thinned(x)
        y = F.relu(self.bn1(self.conv1(y)))
        y = F.relu(self.bn2(self.conv2(y)))
        return shortcut + self.conv3(y)

    def thinned(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 1, self.stride) if self.stride > 1 else x


class ResNet(ImageModel):
    """V1; `depths` are the blocks of the four stages."""

    preprocessing = "caffe"
    smallest = 32
    former_names = FORMER_NAMES

    def __init__(self, depths: tuple[int, ...], include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (224, 224, 3)):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        self.conv1_conv = Conv2d(input_shape[2], 64, 7, stride=2, padding=3)
        self.conv1_bn = norm(64)
        self.conv2 = stage(depths[0], 64, 64, 1)
        self.conv3 = stage(depths[1], 256, 128, 2)
        self.conv4 = stage(depths[2], 512, 256, 2)
        self.conv5 = stage(depths[3], 1024, 512, 2)
        if include_top:
            self.predictions = Linear(2048, classes)
        self.layer_names = {path: file_name(path) for path, _ in self.named_modules()}

    def trunk(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1_bn(self.conv1_conv(x)))
        x = F.max_pool2d(x, 3, 2, padding=1)  # no value is below 0 here, so this equals Keras's zeros around a valid pool
        return self.conv5(self.conv4(self.conv3(self.conv2(x))))

    def top(self, x: Tensor) -> Tensor:
        return self.predictions(F.global_avg_pool2d(x))


class ResNetV2(ImageModel):
    """V2; `depths` are the blocks of the four stages."""

    preprocessing = "tf"
    smallest = 32
    former_names = FORMER_NAMES

    def __init__(self, depths: tuple[int, ...], include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (224, 224, 3)):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        self.conv1_conv = Conv2d(input_shape[2], 64, 7, stride=2, padding=3)
        self.conv2 = stage_v2(depths[0], 64, 64, 2)
        self.conv3 = stage_v2(depths[1], 256, 128, 2)
        self.conv4 = stage_v2(depths[2], 512, 256, 2)
        self.conv5 = stage_v2(depths[3], 1024, 512, 1)
        self.post_bn = norm(2048)
        if include_top:
            self.predictions = Linear(2048, classes)
        self.layer_names = {path: file_name(path) for path, _ in self.named_modules()}

    def trunk(self, x: Tensor) -> Tensor:
        x = F.pad(self.conv1_conv(x), ((0, 0), (1, 1), (1, 1), (0, 0)))  # values may be negative: the zeros take part
        x = F.max_pool2d(x, 3, 2)
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        return F.relu(self.post_bn(x))

    def top(self, x: Tensor) -> Tensor:
        return self.predictions(F.global_avg_pool2d(x))


def stage(depth: int, channels: int, width: int, stride: int) -> Sequential:
    """V1 blocks "block1", "block2", ..., the first of which has the stride."""
    rest = {f"block{i}": Block(4 * width, width) for i in range(2, depth + 1)}
    return Sequential(block1=Block(channels, width, stride), **rest)


def stage_v2(depth: int, channels: int, width: int, stride: int) -> Sequential:
    """V2 blocks "block1", "block2", ..., the last of which has the stride."""
    middle = {f"block{i}": BlockV2(4 * width, width) for i in range(2, depth)}
    return Sequential(
        block1=BlockV2(channels, width), **middle, **{f"block{depth}": BlockV2(4 * width, width, stride)}
    )  # fmt: skip


def file_name(path: str) -> str:
    """A layer's name in Keras's files: "conv2.block1.bn0" is "conv2_block1_0_bn"."""
    return re.sub(r"\.(conv|bn)(\d)$", r".\2_\1", path).replace(".", "_")


# The accuracies of V2 were published for pictures of 299x299, those of V1 for 224x224.
def _register(layers: int, version: int, parameters: int, md5: tuple[str, str], top1: float, top5: float) -> None:
    folder = "https://storage.googleapis.com/tensorflow/keras-applications/resnet"
    file = f"{folder}/resnet{layers}{'v2' if version == 2 else ''}_weights_tf_dim_ordering_tf_kernels"
    register(
        f"resnet{layers}_v2" if version == 2 else f"resnet{layers}",
        partial(ResNetV2 if version == 2 else ResNet, DEPTHS[layers]),
        f"ResNet-{layers}{' V2' if version == 2 else ''}, 224x224: bottleneck blocks around shortcuts",
        {"imagenet": f"{file}.h5", "imagenet_notop": f"{file}_notop.h5"},
        md5={"imagenet": md5[0], "imagenet_notop": md5[1]}, top=("predictions",), licence="BSD" if version == 2 else "MIT",
        input_shape=(224, 224, 3), parameters=parameters, top1=top1, top5=top5,
    )  # fmt: skip


_register(50, 1, 25_636_712, ("2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626"), 74.928, 92.060)
_register(101, 1, 44_707_176, ("f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21"), 76.420, 92.786)
_register(152, 1, 60_419_944, ("100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c"), 76.604, 93.118)
_register(50, 2, 25_613_800, ("3ef43a0b657b3be2300d5770ece849e0", "fac2f116257151a9d068a22e544a4917"), 75.960, 93.034)
_register(101, 2, 44_675_560, ("6343647c601c52e1368623803854d971", "c0ed64b8031c3730f411d2eb4eea35b5"), 77.234, 93.816)
_register(152, 2, 60_380_648, ("a49b44d1979771252814e80f8ec446f9", "ed17cf2e0169df9d443503ef94b23b33"), 78.032, 94.162)
