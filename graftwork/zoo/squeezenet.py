"""SqueezeNet 1.0 and 1.1: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters" (2016)."""

from __future__ import annotations

from ..nn import Conv2d, Module, Tensor
from ..nn import functional as F
from .base import ImageModel
from .registry import register


class Fire(Module):
    """A 1x1 squeeze, then 1x1 and 3x3 expansions side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze1x1 = Conv2d(channels, squeeze, 1)
        self.expand1x1 = Conv2d(squeeze, expand, 1)
        self.expand3x3 = Conv2d(squeeze, expand, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze1x1(x))
        return F.concat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))])


class SqueezeNet(ImageModel):
    """SqueezeNet 1.1, layers named as in the published Keras weights.

    Fire modules are the same in both versions; the first convolution and the places of pools differ.
    """

    preprocessing = "caffe"
    pools_before = ("fire2", "fire4", "fire6")
    stem = (64, 3)  # channels and size of the first convolution's kernel

    def __init__(self, include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (227, 227, 3)):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        channels, size = self.stem
        self.conv1 = Conv2d(input_shape[2], channels, size, stride=2)
        self.fire2 = Fire(channels, 16, 64)
        self.fire3 = Fire(128, 16, 64)
        self.fire4 = Fire(128, 32, 128)
        self.fire5 = Fire(256, 32, 128)
        self.fire6 = Fire(256, 48, 192)
        self.fire7 = Fire(384, 48, 192)
        self.fire8 = Fire(384, 64, 256)
        self.fire9 = Fire(512, 64, 256)
        if include_top:
            self.conv10 = Conv2d(512, classes, 1)

    def trunk(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        for name in (f"fire{i}" for i in range(2, 10)):
            x = getattr(self, name)(F.max_pool2d(x, 3, 2) if name in self.pools_before else x)
        return x

    def top(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.5, self.training)
        return F.global_avg_pool2d(F.relu(self.conv10(x)))


class SqueezeNet1_0(SqueezeNet):  # noqa: N801 - the version's dot
    """SqueezeNet 1.0, the paper's network: a wider first convolution, and pools later on."""

    pools_before = ("fire2", "fire5", "fire9")
    stem = (96, 7)
    smallest = 47


register(
    "squeezenet1_1",
    SqueezeNet,
    "SqueezeNet 1.1, 227x227: AlexNet's accuracy with 1.2 million parameters",
    {"imagenet": "https://github.com/rcmalli/keras-squeezenet/releases/download/v1.0/"
                 "squeezenet_weights_tf_dim_ordering_tf_kernels.h5"},
    top=("conv10",), licence="MIT (Keras conversion), BSD (Caffe original)", top1=56.3, top5=79.1,
)  # fmt: skip
register(
    "squeezenet1_0",
    SqueezeNet1_0,
    "SqueezeNet 1.0, 227x227: the paper's network; 1.1 does as well with less arithmetic",
    top=("conv10",), input_shape=(227, 227, 3), parameters=1_248_424, top1=57.5, top5=80.3,
)  # fmt: skip
