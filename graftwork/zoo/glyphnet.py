"""GlyphNet: a small fire-module network on 32x32 grey images, with weights that ship inside the package.

The modules are SqueezeNet's (Iandola et al. 2016) with batch normalisation. The weights "glyphs" were trained by
Graftwork itself on characters rendered from freely licensed fonts (`scripts/glyphs`, provenance beside the file).
"""

from __future__ import annotations

from ..nn import BatchNorm, Conv2d, Linear, Module, Tensor
from ..nn import functional as F
from .base import ImageModel
from .registry import register

LABELS = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")  # letters of one shape in both cases merged, as in EMNIST
CLASSES = len(LABELS)


class Unit(Module):
    """Convolution, batch normalisation, rectifier."""

    def __init__(self, channels: int, out_channels: int, size: int):
        super().__init__()
        self.conv = Conv2d(channels, out_channels, size, padding="same", bias=False)
        self.bn = BatchNorm(out_channels, momentum=0.9)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Fire(Module):
    """A 1x1 squeeze, then 1x1 and 3x3 expansions side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze = Unit(channels, squeeze, 1)
        self.expand1x1 = Unit(squeeze, expand, 1)
        self.expand3x3 = Unit(squeeze, expand, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return F.concat([self.expand1x1(x), self.expand3x3(x)])


class GlyphNet(ImageModel):
    """32x32x1 images, light ink on dark ground, values 0 to 1."""

    preprocessing = "unit"

    def __init__(self, include_top: bool = True, pooling: str | None = None, classes: int = CLASSES,
                 input_shape: tuple[int, int, int] = (32, 32, 1)):  # fmt: skip
        super().__init__(input_shape, include_top, pooling)
        self.stem = Unit(input_shape[2], 32, 3)
        self.fire1 = Fire(32, 16, 32)
        self.fire2 = Fire(64, 24, 48)
        self.fire3 = Fire(96, 32, 64)
        self.fire4 = Fire(128, 48, 96)
        self.fire5 = Fire(192, 48, 96)
        if include_top:
            self.classifier = Linear(192, classes)

    def trunk(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 2)
        x = F.max_pool2d(self.fire2(self.fire1(x)), 2)
        return self.fire5(self.fire4(self.fire3(x)))

    def top(self, x: Tensor) -> Tensor:
        return self.classifier(F.global_avg_pool2d(x))


register(
    "glyphnet", GlyphNet, "fire modules on 32x32 grey images; embedded weights trained on rendered characters",
    {"glyphs": "glyphnet.h5"}, top=("classifier",), classes=LABELS, licence="Apache-2.0 (fonts: see glyphnet.md)",
)  # fmt: skip
