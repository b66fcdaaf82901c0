"""The model zoo: networks one can read, weights from HDF5, pictures in."""

from . import (
    alexnet,
    convnext,
    efficientnet,
    efficientnet_v2,
    glyphnet,
    images,
    lenet,
    mobilenet_v2,
    resnet,
    resnet_cifar,
    squeezenet,
    vgg,
)
from .keras import load_keras
from .registry import ModelEntry, create, find, list_models, register
from .weights import load_weights, save_weights

__all__ = [
    "ModelEntry", "alexnet", "convnext", "create", "efficientnet", "efficientnet_v2", "find", "glyphnet", "images", "lenet",
    "list_models", "load_keras", "load_weights", "mobilenet_v2",
    "register", "resnet", "resnet_cifar", "save_weights", "squeezenet", "vgg",
]  # fmt: skip
