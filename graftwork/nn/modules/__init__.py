"""Layers and the tree they form."""

from .layers import (
    BatchNorm,
    Conv2d,
    ConvTranspose2d,
    DepthwiseConv2d,
    Embedding,
    LayerNorm,
    Linear,
    SeparableConv2d,
)  # fmt: skip
from .module import Module, Parameter, Sequential
from .simple import (
    ELU,
    Activation,
    AvgPool2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    GlobalMaxPool2d,
    LeakyReLU,
    MaxPool2d,
    ReLU,
    ReLU6,
    Softmax,
    Upsample2d,
    ZeroPad2d,
)  # fmt: skip

__all__ = [
    "ELU", "Activation", "AvgPool2d", "BatchNorm", "Conv2d", "ConvTranspose2d", "DepthwiseConv2d", "Dropout",
    "Embedding", "Flatten", "GlobalAvgPool2d", "GlobalMaxPool2d", "LayerNorm", "LeakyReLU", "Linear", "MaxPool2d",
    "Module", "Parameter", "ReLU", "ReLU6", "SeparableConv2d", "Sequential", "Softmax", "Upsample2d", "ZeroPad2d",
]  # fmt: skip
