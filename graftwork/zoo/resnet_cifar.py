"""ResNet for 32x32 images: He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2.

ResNet-20's weights "cifar10" ship with the package. Graftwork trained them itself (`scripts/cifar10`, provenance and accuracy
beside the file); they are for research use, as CIFAR-10's images are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ..nn import BatchNorm, Conv2d, Linear, Module, Sequential, Tensor
from ..nn import functional as F
from .base import ImageModel
from .registry import register


class Block(Module):
    """Two 3x3 convolutions around a shortcut; where the size changes, every second pixel padded with zero channels."""

    def __init__(self, channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride, self.extra = stride, out_channels - channels
        self.conv1 = Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm(out_channels, momentum=0.9, epsilon=1e-5)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(out_channels, momentum=0.9, epsilon=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = x[:, :: self.stride, :: self.stride]
        if self.extra:
            x = F.pad(x, ((0, 0), (0, 0), (0, 0), (self.extra // 2, self.extra - self.extra // 2)))
        return x


class ResNetCifar(ImageModel):
    """Three stages of `depth` blocks with 16, 32 and 64 channels (6 * depth + 2 layers)."""

    preprocessing = "torch"

    def __init__(self, depth: int, include_top: bool = True, pooling: str | None = None, classes: int = 10,
                 input_shape: tuple[int, int, int] = (32, 32, 3)):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        self.conv1 = Conv2d(input_shape[2], 16, 3, padding=1, bias=False)
        self.bn1 = BatchNorm(16, momentum=0.9, epsilon=1e-5)
        self.stage1 = stage(16, 16, depth, 1)
        self.stage2 = stage(16, 32, depth, 2)
        self.stage3 = stage(32, 64, depth, 2)
        if include_top:
            self.classifier = Linear(64, classes)

    def trunk(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.stage3(self.stage2(self.stage1(x)))

    def top(self, x: Tensor) -> Tensor:
        return self.classifier(F.global_avg_pool2d(x))


def stage(channels: int, out_channels: int, depth: int, stride: int) -> Sequential:
    """`depth` blocks, the first of which changes size and channels."""
    rest = [Block(out_channels, out_channels, 1) for _ in range(depth - 1)]
    return Sequential(Block(channels, out_channels, stride), *rest)


CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # CIFAR-10's, in order
EMBEDDED: dict[int, dict[str, Any]] = {  # accuracy in percent, with its 95 % interval, on 5,000 images that were kept aside
    20: {
        "weights": {"cifar10": "resnet20_cifar10.h5"}, "top1": 89.88, "top1_interval": (89.01, 90.69),
        "sha256": {"cifar10": "574c3fc570039c9688a7bc03b670d98f969d4e45518af67fb23775e17aea48aa"},
        "licence": "research use (CIFAR-10's images; see resnet20_cifar10.md)",
    },
}  # fmt: skip

for _layers, _parameters in ((20, 269_722), (32, 464_154), (56, 853_018)):
    register(
        f"resnet{_layers}", partial(ResNetCifar, _layers // 6), f"ResNet-{_layers} for 32x32 images",
        top=("classifier",), input_shape=(32, 32, 3), parameters=_parameters, preprocessing=ResNetCifar.preprocessing,
        classes=CLASSES, **EMBEDDED.get(_layers, {}),
    )  # fmt: skip
