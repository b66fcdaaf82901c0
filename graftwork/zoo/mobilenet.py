"""MobileNet: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications" (2017)."""

from __future__ import annotations

from ..errors import ConfigError
from ..nn import BatchNorm, Conv2d, DepthwiseConv2d, Tensor
from ..nn import functional as F
from .base import ImageModel
from .registry import register

# width and stride of the thirteen pairs of a depthwise and a 1x1 convolution
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
WIDTHS, SIZES = (0.25, 0.5, 0.75, 1.0), (128, 160, 192, 224)  # of the published weights


class MobileNet(ImageModel):
    """Layers named as in Keras. `alpha` scales every width; A depthwise convolution has `depth_multiplier` outputs a channel.

    At stride 2 there is always one row and column of zeros below and to the right, whatever the size.
    """

    preprocessing = "tf"
    smallest = 32

    def __init__(self, include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (224, 224, 3), alpha: float = 1.0, depth_multiplier: int = 1,
                 dropout: float = 1e-3):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        if not 32 * alpha >= 1:
            raise ConfigError(f"MobileNet: alpha={alpha}; expected a positive factor of width such as 0.5 or 1.0")
        self.dropout = dropout
        channels = int(32 * alpha)
        self.conv1 = Conv2d(input_shape[2], channels, 3, stride=2, padding="same", bias=False)
        self.conv1_bn = BatchNorm(channels)
        for i, (width, stride) in enumerate(BLOCKS, 1):
            inner, width = channels * depth_multiplier, int(width * alpha)
            padding = "same" if stride == 1 else ((0, 1), (0, 1))
            depthwise = DepthwiseConv2d(channels, 3, stride, padding, multiplier=depth_multiplier, bias=False)
            self.add_module(f"conv_dw_{i}", depthwise)
            self.add_module(f"conv_dw_{i}_bn", BatchNorm(inner))
            self.add_module(f"conv_pw_{i}", Conv2d(inner, width, 1, bias=False))
            self.add_module(f"conv_pw_{i}_bn", BatchNorm(width))
            channels = width
        if include_top:
            self.conv_preds = Conv2d(channels, classes, 1)

    def trunk(self, x: Tensor) -> Tensor:
        x = F.relu6(self.conv1_bn(self.conv1(x)))
        for i in range(1, len(BLOCKS) + 1):
            for name in (f"conv_dw_{i}", f"conv_pw_{i}"):
                x = F.relu6(getattr(self, f"{name}_bn")(getattr(self, name)(x)))
        return x

    def top(self, x: Tensor) -> Tensor:
        x = F.dropout(F.global_avg_pool2d(x, keepdims=True), self.dropout, self.training)
        return F.flatten(self.conv_preds(x))


def _published() -> dict[str, str]:
    """Names of weights: "imagenet" for alpha=1.0 and 224 pixels, "imagenet_0.5", "imagenet_128", "imagenet_0.5_128", ...,
    each also with "_notop"."""
    folder = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet"
    files: dict[str, str] = {}
    for alpha in WIDTHS:
        for size in SIZES:
            name = "imagenet" + (f"_{alpha}" if alpha != 1.0 else "") + (f"_{size}" if size != 224 else "")
            file = f"{folder}/mobilenet_{int(alpha * 10)}_{int(alpha * 100) % 10}_{size}_tf"
            files |= {name: f"{file}.h5", f"{name}_notop": f"{file}_no_top.h5"}
    return files


register(
    "mobilenet", MobileNet, "MobileNet, 224x224: depthwise and 1x1 convolutions in turn; alpha scales the width",
    _published(), top=("conv_preds",), licence="Apache-2.0", input_shape=(224, 224, 3), parameters=4_253_864,
    top1=70.424, top5=89.504,
)  # fmt: skip
