"""Whole Keras models: a configuration read as data, its graph checked, its layers built, its weights matched.

Nothing in a file is ever run. Layers that hold somebody's code (Lambda, custom classes) are named and refused, unless the user
has registered a class of their own for them.

    config          a layer's settings with their types checked; `Built`, what a layer is made from
    table           which function builds which layer class; the user's own
    activations, convolution, core, pooling, normalization, merging, recurrent, attention, preprocessing, operations
                    the layers, one file a family
    graph           configurations of models as graphs
    model           a graph with shapes becomes a module
    files           .h5, .keras and folders, read and written
"""

from .config import Built, Call, LayerConfig, Weight, variables
from .files import load_keras, save_keras
from .model import KerasModel, build_keras, plan_keras
from .table import register_keras_layer, unregister_keras_layer

__all__ = [
    "Built", "Call", "KerasModel", "LayerConfig", "Weight", "build_keras", "load_keras", "plan_keras", "register_keras_layer",
    "save_keras", "unregister_keras_layer", "variables",
]  # fmt: skip
