"""The model zoo: networks one can read, weights from HDF5, pictures in."""

from . import glyphnet, images, resnet_cifar, squeezenet
from .keras import load_keras
from .registry import ModelEntry, create, find, list_models, register
from .weights import load_weights, save_weights

__all__ = [
    "ModelEntry", "create", "find", "glyphnet", "images", "list_models", "load_keras", "load_weights", "register",
    "resnet_cifar", "save_weights", "squeezenet",
]  # fmt: skip
