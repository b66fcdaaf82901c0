"""The model zoo: networks one can read, weights from HDF5, pictures in."""

from . import (
    alexnet,
    convnext,
    densenet,
    efficientnet,
    efficientnet_v2,
    glyphnet,
    images,
    inception_resnet_v2,
    inception_v3,
    lenet,
    mobilenet,
    mobilenet_v2,
    mobilenet_v3,
    nasnet,
    resnet,
    resnet_cifar,
    squeezenet,
    vgg,
    xception,
)
from .keras import load_keras, register_keras_layer, save_keras
from .labels import Prediction, decode_predictions
from .registry import ModelEntry, WeightsFile, create, find, list_models, register
from .weights import load_weights, read_weights, save_weights
from .whole import load, save

__all__ = [
    "ModelEntry", "Prediction", "WeightsFile", "alexnet", "convnext", "create", "decode_predictions", "densenet",
    "efficientnet", "efficientnet_v2", "find", "glyphnet", "images", "inception_resnet_v2", "inception_v3", "lenet",
    "list_models", "load", "load_keras", "load_weights", "mobilenet", "mobilenet_v2", "mobilenet_v3", "nasnet", "read_weights",
    "register", "register_keras_layer", "resnet", "resnet_cifar", "save", "save_keras", "save_weights", "squeezenet", "vgg",
    "xception",
]  # fmt: skip
