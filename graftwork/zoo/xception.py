"""Xception: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions" (2016)."""

from __future__ import annotations

from ..nn import BatchNorm, Conv2d, Linear, Module, SeparableConv2d, Tensor
from ..nn import functional as F
from .base import ImageModel
from .registry import register


class Entry(Module):
    """Two separable convolutions and a pool of stride 2, around a 1x1 convolution of stride 2.

    A rectifier comes before each separable convolution, but block2's first one, whose input is rectified already.
    """

    def __init__(self, channels: int, inner: int, width: int, rectified: bool = True):
        super().__init__()
        self.rectified = rectified
        self.conv = Conv2d(channels, width, 1, stride=2, bias=False)
        self.bn = BatchNorm(width)
        self.sepconv1 = SeparableConv2d(channels, inner, 3, padding="same", bias=False)
        self.sepconv1_bn = BatchNorm(inner)
        self.sepconv2 = SeparableConv2d(inner, width, 3, padding="same", bias=False)
        self.sepconv2_bn = BatchNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.bn(self.conv(x))
        x = self.sepconv1_bn(self.sepconv1(F.relu(x) if self.rectified else x))
        x = self.sepconv2_bn(self.sepconv2(F.relu(x)))
        return F.max_pool2d(x, 3, 2, "same") + shortcut


class Middle(Module):
    """Three separable convolutions, each after a rectifier, around a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        for i in (1, 2, 3):
            self.add_module(f"sepconv{i}", SeparableConv2d(channels, channels, 3, padding="same", bias=False))
            self.add_module(f"sepconv{i}_bn", BatchNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.sepconv1_bn(self.sepconv1(F.relu(x)))
        y = self.sepconv2_bn(self.sepconv2(F.relu(y)))
        y = self.sepconv3_bn(self.sepconv3(F.relu(y)))
        return y + x


class Xception(ImageModel):
    """Layers named as in Keras; the convolutions of shortcuts, which have no name there, as Keras counts them."""

    preprocessing = "tf"
    smallest = 71
    counted_names = ("conv2d", "batch_normalization")

    def __init__(self, include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (299, 299, 3)):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        self.block1_conv1 = Conv2d(input_shape[2], 32, 3, stride=2, bias=False)
        self.block1_conv1_bn = BatchNorm(32)
        self.block1_conv2 = Conv2d(32, 64, 3, bias=False)
        self.block1_conv2_bn = BatchNorm(64)
        self.block2 = Entry(64, 128, 128, rectified=False)
        self.block3 = Entry(128, 256, 256)
        self.block4 = Entry(256, 728, 728)
        for i in range(5, 13):
            self.add_module(f"block{i}", Middle(728))
        self.block13 = Entry(728, 728, 1024)
        self.block14_sepconv1 = SeparableConv2d(1024, 1536, 3, padding="same", bias=False)
        self.block14_sepconv1_bn = BatchNorm(1536)
        self.block14_sepconv2 = SeparableConv2d(1536, 2048, 3, padding="same", bias=False)
        self.block14_sepconv2_bn = BatchNorm(2048)
        if include_top:
            self.predictions = Linear(2048, classes)
        self.layer_names = {path: path.replace(".", "_") for path, _ in self.named_modules()}
        for block, number in (("block2", ""), ("block3", "_1"), ("block4", "_2"), ("block13", "_3")):
            self.layer_names |= {f"{block}.conv": f"conv2d{number}", f"{block}.bn": f"batch_normalization{number}"}

    def trunk(self, x: Tensor) -> Tensor:
        x = F.relu(self.block1_conv1_bn(self.block1_conv1(x)))
        x = F.relu(self.block1_conv2_bn(self.block1_conv2(x)))
        for i in range(2, 14):
            x = getattr(self, f"block{i}")(x)
        x = F.relu(self.block14_sepconv1_bn(self.block14_sepconv1(x)))
        return F.relu(self.block14_sepconv2_bn(self.block14_sepconv2(x)))

    def top(self, x: Tensor) -> Tensor:
        return self.predictions(F.global_avg_pool2d(x))


FILE = "https://storage.googleapis.com/tensorflow/keras-applications/xception/xception_weights_tf_dim_ordering_tf_kernels"
register(
    "xception", Xception, "Xception, 299x299: separable convolutions around shortcuts",
    {"imagenet": f"{FILE}.h5", "imagenet_notop": f"{FILE}_notop.h5"},
    md5={"imagenet": "0a58e3b7378bc2990ea3b43d5981f1f6", "imagenet_notop": "b0042744bf5b25fce3cb969f33bebb97"},
    top=("predictions",), licence="MIT", input_shape=(299, 299, 3), parameters=22_910_480, top1=79.006, top5=94.452,
)  # fmt: skip
