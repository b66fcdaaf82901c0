"""LeNet-5: LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition" (1998).

Layers carry the paper's names. As the network is built everywhere today, C3 sees all channels of S2 (the paper connects by a
table), pools average without trained coefficients, and the output is a dense layer instead of distances to drawn digits.
"""

from __future__ import annotations

from ..nn import Conv2d, Linear, Tensor
from ..nn import functional as F
from .base import ImageModel
from .registry import register


class LeNet5(ImageModel):
    """C1, C3 and C5 convolve with 5x5, 2x2 averages lie between, F6 and `output` are dense; the activation is tanh.

    C5 covers its whole input at 32x32, so the trunk's map is 1x1 there; F6 looks at every position of larger ones, and
    images must then be of `input_shape`.
    """

    preprocessing = "unit"
    smallest = 32

    def __init__(self, include_top: bool = True, pooling: str | None = None, classes: int = 10,
                 input_shape: tuple[int, int, int] = (32, 32, 1)):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        self.C1 = Conv2d(input_shape[2], 6, 5)
        self.C3 = Conv2d(6, 16, 5)
        self.C5 = Conv2d(16, 120, 5)
        if include_top:
            height, width = (((side - 4) // 2 - 4) // 2 - 4 for side in input_shape[:2])
            self.F6 = Linear(height * width * 120, 84)
            self.output = Linear(84, classes)

    def trunk(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.tanh(self.C1(x)), 2)
        x = F.avg_pool2d(F.tanh(self.C3(x)), 2)
        return F.tanh(self.C5(x))

    def top(self, x: Tensor) -> Tensor:
        return self.output(F.tanh(self.F6(F.flatten(x))))


register(
    "lenet5", LeNet5, "LeNet-5 for 32x32 grey images, with plain averages and a dense output", top=("F6", "output"),
    input_shape=(32, 32, 1), parameters=61_706,
)  # fmt: skip
