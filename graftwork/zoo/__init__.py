"""The model zoo: networks one can read, weights from HDF5, pictures in."""

from . import glyphnet, images, mobilenet_v2, resnet, resnet_cifar, squeezenet, vgg
from .keras import load_keras, register_keras_layer, save_keras
from .registry import ModelEntry, create, find, list_models, register
from .weights import load_weights, save_weights

__all__ = [
    "ModelEntry", "create", "find", "glyphnet", "images", "list_models", "load_keras", "load_weights", "mobilenet_v2",
    "register", "register_keras_layer", "resnet", "resnet_cifar", "save_keras", "save_weights", "squeezenet", "vgg",
]  # fmt: skip
