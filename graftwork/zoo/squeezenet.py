"""SqueezeNet 1.1: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters" (2016)."""

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
    """SqueezeNet 1.1, layers named as in the published Keras weights."""

    preprocessing = "caffe"

    def __init__(self, include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (227, 227, 3)):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        self.conv1 = Conv2d(input_shape[2], 64, 3, stride=2)
        self.fire2 = Fire(64, 16, 64)
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
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2)
        x = F.max_pool2d(self.fire3(self.fire2(x)), 3, 2)
        x = F.max_pool2d(self.fire5(self.fire4(x)), 3, 2)
        return self.fire9(self.fire8(self.fire7(self.fire6(x))))

    def top(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.5, self.training)
        return F.global_avg_pool2d(F.relu(self.conv10(x)))


register(
    "squeezenet1_1",
    SqueezeNet,
    "SqueezeNet 1.1, 227x227: AlexNet's accuracy with 1.2 million parameters",
    {"imagenet": "https://github.com/rcmalli/keras-squeezenet/releases/download/v1.0/"
                 "squeezenet_weights_tf_dim_ordering_tf_kernels.h5"},
    top=("conv10",), licence="MIT (Keras conversion), BSD (Caffe original)", top1=56.3, top5=79.1,
)  # fmt: skip
