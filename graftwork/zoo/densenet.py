"""DenseNet-121, 169 and 201: Huang et al., "Densely Connected Convolutional Networks" (2016)."""

from __future__ import annotations

from functools import partial

from ..nn import BatchNorm, Conv2d, Linear, Module, Sequential, Tensor
from ..nn import functional as F
from .base import ImageModel
from .registry import register
from .resnet import file_name

DEPTHS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}  # blocks in each of the four stages
GROWTH = 32  # channels that a block adds
norm = partial(BatchNorm, epsilon=1.001e-5)


class Block(Module):
    """A 1x1 and a 3x3 convolution, each normalised and rectified before, whose result is put behind the input's channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn0 = norm(channels)
        self.conv1 = Conv2d(channels, 4 * GROWTH, 1, bias=False)
        self.bn1 = norm(4 * GROWTH)
        self.conv2 = Conv2d(4 * GROWTH, GROWTH, 3, padding="same", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn0(x)))
        return F.concat([x, self.conv2(F.relu(self.bn1(y)))])


class Transition(Module):
    """Half the channels, half the height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn = norm(channels)
        self.conv = Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet(ImageModel):
    """`depths` are the blocks of the four stages; layers named as in Keras."""

    preprocessing = "torch"
    smallest = 32
    # Keras 2 said "conv1/bn", and the published files' classifier is "fc1000"
    former_names = (("/", "_"), ("^fc1000$", "predictions"))

    def __init__(self, depths: tuple[int, ...], include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (224, 224, 3)):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        self.conv1_conv = Conv2d(input_shape[2], 64, 7, stride=2, padding=3, bias=False)
        self.conv1_bn = norm(64)
        self.stages: list[str] = []
        channels = 64
        for number, depth in enumerate(depths, 2):
            if number > 2:
                self.stages.append(f"pool{number - 1}")
                self.add_module(self.stages[-1], Transition(channels))
                channels //= 2
            self.stages.append(f"conv{number}")
            blocks = {f"block{i + 1}": Block(channels + i * GROWTH) for i in range(depth)}
            self.add_module(self.stages[-1], Sequential(**blocks))
            channels += depth * GROWTH
        self.bn = norm(channels)
        if include_top:
            self.predictions = Linear(channels, classes)
        self.layer_names = {path: file_name(path) for path, _ in self.named_modules()}

    def trunk(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1_bn(self.conv1_conv(x)))
        x = F.max_pool2d(x, 3, 2, padding=1)  # no value is below 0 here, so this equals Keras's zeros around a valid pool
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return F.relu(self.bn(x))

    def top(self, x: Tensor) -> Tensor:
        return self.predictions(F.global_avg_pool2d(x))


def _register(layers: int, parameters: int, md5: tuple[str, str], top1: float, top5: float) -> None:
    folder = "https://storage.googleapis.com/tensorflow/keras-applications/densenet"
    file = f"{folder}/densenet{layers}_weights_tf_dim_ordering_tf_kernels"
    register(
        f"densenet{layers}", partial(DenseNet, DEPTHS[layers]),
        f"DenseNet-{layers}, 224x224: every block sees what all blocks before it in its stage have made",
        {"imagenet": f"{file}.h5", "imagenet_notop": f"{file}_notop.h5"},
        md5={"imagenet": md5[0], "imagenet_notop": md5[1]}, top=("predictions",), licence="BSD-3-Clause",
        input_shape=(224, 224, 3), parameters=parameters, top1=top1, top5=top5,
    )  # fmt: skip


_register(121, 8_062_504, ("9d60b8095a5708f2dcce2bca79d332c7", "30ee3e1110167f948a6b9946edeeb738"), 74.972, 92.258)
_register(169, 14_307_880, ("d699b8f76981ab1b30698df4c175e90b", "b8c4d4c20dd625c148057b9ff1c1176b"), 76.176, 93.176)
_register(201, 20_242_984, ("1ceb130c1ea1b78c3bf6114dbdfd8807", "c13680b51ded0fb44dff2d8f86ac8bb1"), 77.320, 93.620)
