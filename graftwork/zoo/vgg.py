"""VGG16 and VGG19: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2014)."""

from __future__ import annotations

from functools import partial

from ..nn import Conv2d, Linear, Sequential, Tensor
from ..nn import functional as F
from .base import ImageModel
from .registry import register

DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # 3x3 convolutions in each of the five blocks


class Convolution(Conv2d):
    """3x3, with its rectifier: one layer in Keras's files and in `features`."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__(channels, out_channels, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Dense(Linear):
    """With its rectifier."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class VGG(ImageModel):
    """Five blocks of 3x3 convolutions, each ended by a 2x2 pool, then three dense layers; named as in Keras's files.

    The first dense layer looks at every position, so with the top images must be of `input_shape`.
    """

    preprocessing = "caffe"
    smallest = 32

    def __init__(self, depths: tuple[int, ...], include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (224, 224, 3)):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        height, width, channels = input_shape
        self.block1 = block(depths[0], channels, 64)
        self.block2 = block(depths[1], 64, 128)
        self.block3 = block(depths[2], 128, 256)
        self.block4 = block(depths[3], 256, 512)
        self.block5 = block(depths[4], 512, 512)
        if include_top:
            self.fc1 = Dense(height // 32 * (width // 32) * 512, 4096)
            self.fc2 = Dense(4096, 4096)
            self.predictions = Linear(4096, classes)
        self.layer_names = {path: path.replace(".", "_") for path, _ in self.named_modules()}

    def trunk(self, x: Tensor) -> Tensor:
        for convolutions in (self.block1, self.block2, self.block3, self.block4, self.block5):
            x = F.max_pool2d(convolutions(x), 2)
        return x

    def top(self, x: Tensor) -> Tensor:
        x = F.flatten(x)
        return self.predictions(self.fc2(self.fc1(x)))


def block(depth: int, channels: int, out_channels: int) -> Sequential:
    """`depth` 3x3 convolutions "conv1", "conv2", ..., the first of which changes the channels."""
    sizes = [channels, *[out_channels] * (depth - 1)]
    return Sequential(**{f"conv{i}": Convolution(size, out_channels) for i, size in enumerate(sizes, 1)})


def _register(layers: int, parameters: int, md5: tuple[str, str], top1: float, top5: float) -> None:
    folder = f"https://storage.googleapis.com/tensorflow/keras-applications/vgg{layers}"
    file = f"{folder}/vgg{layers}_weights_tf_dim_ordering_tf_kernels"
    register(
        f"vgg{layers}",
        partial(VGG, DEPTHS[layers]),
        f"VGG with {layers} layers, 224x224: 3x3 convolutions, pools and three dense layers",
        {"imagenet": f"{file}.h5", "imagenet_notop": f"{file}_notop.h5"},
        md5={"imagenet": md5[0], "imagenet_notop": md5[1]}, top=("fc1", "fc2", "predictions"), licence="CC-BY-4.0",
        input_shape=(224, 224, 3), parameters=parameters, top1=top1, top5=top5,
    )  # fmt: skip


_register(16, 138_357_544, ("64373286793e3c8b2b4e3219cbf3544b", "6d6bbae143d832006294945121d1f1fc"), 71.268, 90.050)
_register(19, 143_667_240, ("cbe5617147190e668d6c5d5026f83318", "253f8cb515780f3b799900260a226db6"), 71.256, 89.988)
