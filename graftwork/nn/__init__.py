"""Tensors, ops, modules and training: the engine."""

from . import functional, init, losses, metrics, optim, rng, schedule
from .autograd import grad, no_grad, set_grad
from .compile import Compiled, compile
from .data import ArrayDataset, DataLoader
from .losses import CrossEntropyLoss, L1Loss, MSELoss, SoftCrossEntropyLoss
from .modules import *  # noqa: F403 - the layers are this namespace's purpose
from .modules import __all__ as _layers
from .op import OPS, Op, Sample, Spec
from .precision import LossScale
from .tensor import Tensor, tensor
from .train import Trainer, predict

__all__ = [
    *_layers, "ArrayDataset", "Compiled", "CrossEntropyLoss", "DataLoader", "L1Loss", "LossScale", "MSELoss", "OPS", "Op",
    "Sample", "SoftCrossEntropyLoss", "Spec", "Tensor", "Trainer", "compile", "functional", "grad", "init", "losses", "metrics",
    "no_grad", "optim", "predict", "rng", "schedule", "set_grad", "tensor",
]  # fmt: skip
