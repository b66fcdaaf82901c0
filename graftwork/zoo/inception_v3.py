"""InceptionV3: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2015)."""

from __future__ import annotations

from ..nn import AvgPool2d, BatchNorm, Conv2d, Linear, MaxPool2d, Module, Sequential, Tensor
from ..nn import functional as F
from .base import ImageModel
from .registry import register


class ConvBN(Module):
    """A convolution without bias, normalised without scale, rectified."""

    def __init__(self, channels: int, width: int, kernel, stride: int = 1, padding: str = "same"):
        super().__init__()
        self.conv = Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = BatchNorm(width, scale=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Branches(Module):
    """Modules side by side on one input, joined over channels."""

    def __init__(self, *branches: Module):
        super().__init__()
        self.branches = branches
        for i, branch in enumerate(branches):
            self.add_module(f"branch{i}", branch)

    def forward(self, x: Tensor) -> Tensor:
        return F.concat([branch(x) for branch in self.branches])


class InceptionV3(ImageModel):
    """Blocks named "mixed0" to "mixed10" as in the paper's Keras form; layers in files as Keras counts them."""

    preprocessing = "tf"
    smallest = 75
    counted_names = ("conv2d", "batch_normalization")

    def __init__(self, include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (299, 299, 3)):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        self.stem = stem(input_shape[2])
        self.mixed0 = mixed_5x5(192, 32)
        self.mixed1 = mixed_5x5(256, 64)
        self.mixed2 = mixed_5x5(288, 64)
        self.mixed3 = Branches(
            ConvBN(288, 384, 3, 2, "valid"),
            Sequential(ConvBN(288, 64, 1), ConvBN(64, 96, 3), ConvBN(96, 96, 3, 2, "valid")),
            MaxPool2d(3, 2),
        )
        self.mixed4 = mixed_7x7(128)
        self.mixed5 = mixed_7x7(160)
        self.mixed6 = mixed_7x7(160)
        self.mixed7 = mixed_7x7(192)
        self.mixed8 = Branches(
            Sequential(ConvBN(768, 192, 1), ConvBN(192, 320, 3, 2, "valid")),
            Sequential(
                ConvBN(768, 192, 1), ConvBN(192, 192, (1, 7)), ConvBN(192, 192, (7, 1)), ConvBN(192, 192, 3, 2, "valid")
            ),
            MaxPool2d(3, 2),
        )
        self.mixed9 = mixed_3x3(1280)
        self.mixed10 = mixed_3x3(2048)
        if include_top:
            self.predictions = Linear(2048, classes)
        self.layer_names = counted_layer_names(self)

    def trunk(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(11):
            x = getattr(self, f"mixed{i}")(x)
        return x

    def top(self, x: Tensor) -> Tensor:
        return self.predictions(F.global_avg_pool2d(x))


def stem(channels: int) -> Sequential:
    """Pictures to 192 channels, an eighth as high and wide; InceptionResNetV2 begins with it as well."""
    return Sequential(
        ConvBN(channels, 32, 3, 2, "valid"), ConvBN(32, 32, 3, padding="valid"), ConvBN(32, 64, 3), MaxPool2d(3, 2),
        ConvBN(64, 80, 1), ConvBN(80, 192, 3, padding="valid"), MaxPool2d(3, 2),
    )  # fmt: skip


def mixed_5x5(channels: int, pooled: int) -> Branches:
    """mixed0 to mixed2; the average does not count padding."""
    return Branches(
        ConvBN(channels, 64, 1),
        Sequential(ConvBN(channels, 48, 1), ConvBN(48, 64, 5)),
        Sequential(ConvBN(channels, 64, 1), ConvBN(64, 96, 3), ConvBN(96, 96, 3)),
        Sequential(AvgPool2d(3, 1, "same"), ConvBN(channels, pooled, 1)),
    )


def mixed_7x7(width: int) -> Branches:
    """mixed4 to mixed7: windows of 7x7 as rows and columns."""
    row, column = (1, 7), (7, 1)
    return Branches(
        ConvBN(768, 192, 1),
        Sequential(ConvBN(768, width, 1), ConvBN(width, width, row), ConvBN(width, 192, column)),
        Sequential(
            ConvBN(768, width, 1), ConvBN(width, width, column), ConvBN(width, width, row), ConvBN(width, width, column),
            ConvBN(width, 192, row),
        ),
        Sequential(AvgPool2d(3, 1, "same"), ConvBN(768, 192, 1)),
    )  # fmt: skip


def mixed_3x3(channels: int) -> Branches:
    """mixed9 and mixed10: rows and columns of 3x3 side by side."""

    def split() -> Branches:
        return Branches(ConvBN(384, 384, (1, 3)), ConvBN(384, 384, (3, 1)))

    return Branches(
        ConvBN(channels, 320, 1),
        Sequential(ConvBN(channels, 384, 1), split()),
        Sequential(ConvBN(channels, 448, 1), ConvBN(448, 384, 3), split()),
        Sequential(AvgPool2d(3, 1, "same"), ConvBN(channels, 192, 1)),
    )


def counted_layer_names(model: Module) -> dict[str, str]:
    """Names in files of the layers of each `ConvBN`, to which Keras gave none: "conv2d", "conv2d_1", ... in our order."""
    names: dict[str, str] = {}
    paths = [path for path, module in model.named_modules() if isinstance(module, ConvBN)]
    for i, path in enumerate(paths):
        number = f"_{i}" if i else ""
        names |= {f"{path}.conv": f"conv2d{number}", f"{path}.bn": f"batch_normalization{number}"}
    return names


FILE = ("https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
        "inception_v3_weights_tf_dim_ordering_tf_kernels")  # fmt: skip
register(
    "inception_v3", InceptionV3, "InceptionV3, 299x299: small convolutions in parallel branches",
    {"imagenet": f"{FILE}.h5", "imagenet_notop": f"{FILE}_notop.h5"},
    md5={"imagenet": "9a0d58056eeedaa3f26cb7ebd46da564", "imagenet_notop": "bcbd6486424b2319ff4ef7d526e38f63"},
    top=("predictions",), licence="Apache-2.0", input_shape=(299, 299, 3), parameters=23_851_784, top1=77.898, top5=93.720,
)  # fmt: skip
