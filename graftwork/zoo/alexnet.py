"""AlexNet: Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (2012).

Single-tower form: what the paper laid on two GPUs stands side by side in one network. Where the paper leaves a choice:

- groups=2 (the default) keeps the paper's connections: the second, fourth and fifth convolution see only their own half of the
  channels, 60,965,224 parameters in all. groups=1 connects everything.
- Images are 227x227, the size at which the paper's 55x55 first feature map comes out without padding.
- Response normalisation follows the rectifier and comes before pooling, with the paper's constants (5 channels, k = 2,
  alpha = 1e-4, beta = 0.75; alpha multiplies the sum, it is not divided by 5 as in Caffe).
- Pools are 3x3 with stride 2. Dropout of 0.5 stands before the first two dense layers.
- The paper subtracts the mean image; `preprocess` subtracts the mean colour.

No file with the paper's weights is published in HDF5, so none is registered; accuracies are the paper's for one network.
"""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError
from ..nn import Conv2d, Linear, Tensor, tensor
from ..nn import functional as F
from .base import ImageModel
from .registry import register


class AlexNet(ImageModel):
    """Five convolutions and three dense layers: conv1 to conv5, fc6, fc7, fc8.

    The first dense layer looks at every position, so with the top images must be of `input_shape`.
    """

    preprocessing = "caffe"
    smallest = 67

    def __init__(self, include_top: bool = True, pooling: str | None = None, classes: int = 1000,
                 input_shape: tuple[int, int, int] = (227, 227, 3), groups: int = 2):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        if groups not in (1, 2):
            raise ConfigError(f"AlexNet: groups={groups}; expected 2 for the paper's halves or 1 for all connections")
        self.conv1 = Conv2d(input_shape[2], 96, 11, stride=4)
        self.conv2 = Conv2d(96, 256, 5, padding="same", groups=groups)
        self.conv3 = Conv2d(256, 384, 3, padding="same")
        self.conv4 = Conv2d(384, 384, 3, padding="same", groups=groups)
        self.conv5 = Conv2d(384, 256, 3, padding="same", groups=groups)
        if include_top:
            height, width = (_positions(side) for side in input_shape[:2])
            self.fc6 = Linear(height * width * 256, 4096)
            self.fc7 = Linear(4096, 4096)
            self.fc8 = Linear(4096, classes)

    def trunk(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(response_norm(F.relu(self.conv1(x))), 3, 2)
        x = F.max_pool2d(response_norm(F.relu(self.conv2(x))), 3, 2)
        x = F.relu(self.conv4(F.relu(self.conv3(x))))
        return F.max_pool2d(F.relu(self.conv5(x)), 3, 2)

    def top(self, x: Tensor) -> Tensor:
        x = F.dropout(F.flatten(x), 0.5, self.training)
        x = F.dropout(F.relu(self.fc6(x)), 0.5, self.training)
        return self.fc8(F.relu(self.fc7(x)))


def response_norm(x: Tensor, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> Tensor:
    """Local response normalisation (section 3.3): x / (k + alpha * sum of squares over `size` channels around) ** beta.

    The sum is a product with a matrix of ones along its diagonal, which is one kernel whatever the number of channels.
    """
    channels = np.arange(x.shape[-1])
    band = np.abs(channels[:, None] - channels) <= size // 2
    squares = F.linear(F.square(x), tensor(alpha * band, dtype=x.dtype, device=x.device))
    return x * (squares + k) ** -beta


def _positions(side: int) -> int:
    """Height or width of the last feature map."""
    side = (side - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side


register(
    "alexnet", AlexNet, "AlexNet, 227x227: the network of 2012 in one tower; groups=1 connects its two halves",
    top=("fc6", "fc7", "fc8"), input_shape=(227, 227, 3), parameters=60_965_224, top1=59.3, top5=81.8,
)  # fmt: skip
