"""InceptionResNetV2.

Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning" (2016).
"""

from __future__ import annotations

from ..nn import AvgPool2d, BatchNorm, Conv2d, Linear, MaxPool2d, Module, Sequential, Tensor
from ..nn import functional as F
from .base import ImageModel
from .inception_v3 import Branches, ConvBN, counted_layer_names, stem
from .registry import register


class Residual(Module):
    """Branches, a 1x1 convolution back to the input's channels, and a scaled sum; the network's last one is not rectified."""

    def __init__(self, channels: int, width: int, scale: float, *branches: Module, rectified: bool = True):
        super().__init__()
        self.scale, self.rectified = scale, rectified
        self.branches = Branches(*branches)
        self.conv = Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv(self.branches(x)) * self.scale
        return F.relu(x) if self.rectified else x


class InceptionResNetV2(ImageModel):
    """Blocks named as in Keras; what Keras gave no name is called in files as Keras counts it."""

    preprocessing = "tf"
    smallest = 75
    counted_names = ("conv2d", "batch_normalization")

    def __init__(self, include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (299, 299, 3)):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        self.stem = stem(input_shape[2])
        self.mixed_5b = Branches(
            ConvBN(192, 96, 1),
            Sequential(ConvBN(192, 48, 1), ConvBN(48, 64, 5)),
            Sequential(ConvBN(192, 64, 1), ConvBN(64, 96, 3), ConvBN(96, 96, 3)),
            Sequential(AvgPool2d(3, 1, "same"), ConvBN(192, 64, 1)),
        )
        self.block35 = numbered([block35() for _ in range(10)])
        self.mixed_6a = Branches(
            ConvBN(320, 384, 3, 2, "valid"),
            Sequential(ConvBN(320, 256, 1), ConvBN(256, 256, 3), ConvBN(256, 384, 3, 2, "valid")),
            MaxPool2d(3, 2),
        )
        self.block17 = numbered([block17() for _ in range(20)])
        self.mixed_7a = Branches(
            Sequential(ConvBN(1088, 256, 1), ConvBN(256, 384, 3, 2, "valid")),
            Sequential(ConvBN(1088, 256, 1), ConvBN(256, 288, 3, 2, "valid")),
            Sequential(ConvBN(1088, 256, 1), ConvBN(256, 288, 3), ConvBN(288, 320, 3, 2, "valid")),
            MaxPool2d(3, 2),
        )
        self.block8 = numbered([*(block8(0.2) for _ in range(9)), block8(1.0, rectified=False)])
        self.conv_7b = Conv2d(2080, 1536, 1, bias=False)
        self.conv_7b_bn = BatchNorm(1536, scale=False)
        if include_top:
            self.predictions = Linear(1536, classes)
        blocks = {path: path.replace(".", "_") for path, _ in self.named_modules() if path.startswith("block")}
        self.layer_names = blocks | counted_layer_names(self)

    def trunk(self, x: Tensor) -> Tensor:
        x = self.block35(self.mixed_5b(self.stem(x)))
        x = self.block17(self.mixed_6a(x))
        x = self.block8(self.mixed_7a(x))
        return F.relu(self.conv_7b_bn(self.conv_7b(x)))

    def top(self, x: Tensor) -> Tensor:
        return self.predictions(F.global_avg_pool2d(x))


def block35() -> Residual:
    return Residual(
        320, 128, 0.17,
        ConvBN(320, 32, 1),
        Sequential(ConvBN(320, 32, 1), ConvBN(32, 32, 3)),
        Sequential(ConvBN(320, 32, 1), ConvBN(32, 48, 3), ConvBN(48, 64, 3)),
    )  # fmt: skip


def block17() -> Residual:
    return Residual(
        1088, 384, 0.1,
        ConvBN(1088, 192, 1),
        Sequential(ConvBN(1088, 128, 1), ConvBN(128, 160, (1, 7)), ConvBN(160, 192, (7, 1))),
    )  # fmt: skip


def block8(scale: float, rectified: bool = True) -> Residual:
    return Residual(
        2080, 448, scale,
        ConvBN(2080, 192, 1),
        Sequential(ConvBN(2080, 192, 1), ConvBN(192, 224, (1, 3)), ConvBN(224, 256, (3, 1))),
        rectified=rectified,
    )  # fmt: skip


def numbered(blocks: list[Residual]) -> Sequential:
    """Blocks "1", "2", ... in a row."""
    return Sequential(**{str(i): block for i, block in enumerate(blocks, 1)})


FILE = ("https://storage.googleapis.com/tensorflow/keras-applications/inception_resnet_v2/"
        "inception_resnet_v2_weights_tf_dim_ordering_tf_kernels")  # fmt: skip
register(
    "inception_resnet_v2", InceptionResNetV2, "InceptionResNetV2, 299x299: Inception's branches around shortcuts",
    {"imagenet": f"{FILE}.h5", "imagenet_notop": f"{FILE}_notop.h5"},
    md5={"imagenet": "e693bd0210a403b3192acc6073ad2e96", "imagenet_notop": "d19885ff4a710c122648d3b5c3b684e4"},
    top=("predictions",), licence="Apache-2.0", input_shape=(299, 299, 3), parameters=55_873_736, top1=80.256, top5=95.252,
)  # fmt: skip
