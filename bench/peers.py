"""The four networks in PyTorch with our weights, and the ONNX files that the other peers run.

Modules have the names of ours, so weights are copied by name. Layers, strides and padding are the same; MobileNetV2's padding
of one side only is a layer of its own here, which ONNX Runtime and OpenVINO fold into the convolution after it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

# channels, blocks, stride of the first block. Our own tables are not imported: this file loads without Graftwork.
MOBILENET_STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


class Fire(nn.Module):
    def __init__(self, channels, squeeze, expand):
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze1x1(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        sizes = ((64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128),
                 (256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256))  # fmt: skip
        for i, size in enumerate(sizes, 2):
            self.add_module(f"fire{i}", Fire(*size))
        self.conv10 = nn.Conv2d(512, 1000, 1)

    def trunk(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2)
        x = F.max_pool2d(self.fire3(self.fire2(x)), 3, 2)
        x = F.max_pool2d(self.fire5(self.fire4(x)), 3, 2)
        return self.fire9(self.fire8(self.fire7(self.fire6(x))))

    def forward(self, x):
        return F.relu(self.conv10(self.trunk(x))).mean((2, 3))


class Inverted(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, channels, out_channels, stride, expansion):
        super().__init__()
        inner = channels * expansion
        self.expanded, self.shortcut = expansion > 1, stride == 1 and channels == out_channels
        if self.expanded:
            self.expand = nn.Conv2d(channels, inner, 1, bias=False)
            self.expand_BN = nn.BatchNorm2d(inner)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1)) if stride == 2 else nn.Identity()
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, padding=2 - stride, groups=inner, bias=False)
        self.depthwise_BN = nn.BatchNorm2d(inner)
        self.project = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.project_BN = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        y = F.relu6(self.expand_BN(self.expand(x))) if self.expanded else x
        y = F.relu6(self.depthwise_BN(self.depthwise(self.pad(y))))
        y = self.project_BN(self.project(y))
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.Conv1 = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self.bn_Conv1 = nn.BatchNorm2d(32)
        channels, self.block_names = 32, []
        for out_channels, depth, first_stride in MOBILENET_STAGES:
            for i in range(depth):
                number = len(self.block_names)
                self.block_names.append(f"block_{number}" if number else "expanded_conv")
                block = Inverted(channels, out_channels, first_stride if i == 0 else 1, 6 if number else 1)
                self.add_module(self.block_names[-1], block)
                channels = out_channels
        self.Conv_1 = nn.Conv2d(channels, 1280, 1, bias=False)
        self.Conv_1_bn = nn.BatchNorm2d(1280)
        self.predictions = nn.Linear(1280, 1000)

    def forward(self, x):
        x = F.relu6(self.bn_Conv1(self.Conv1(self.pad(x))))
        for name in self.block_names:
            x = getattr(self, name)(x)
        return self.predictions(F.relu6(self.Conv_1_bn(self.Conv_1(x))).mean((2, 3)))


class Bottleneck(nn.Module):
    """ResNet's block."""

    def __init__(self, channels, width, stride=1):
        super().__init__()
        self.projected = channels != 4 * width
        if self.projected:
            self.conv0, self.bn0 = nn.Conv2d(channels, 4 * width, 1, stride), nn.BatchNorm2d(4 * width)
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1), nn.BatchNorm2d(4 * width)

    def forward(self, x):
        shortcut = self.bn0(self.conv0(x)) if self.projected else x
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(shortcut + self.bn3(self.conv3(x)))


class ResNet50(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1_conv, self.conv1_bn = nn.Conv2d(3, 64, 7, stride=2, padding=3), nn.BatchNorm2d(64)
        channels = 64
        for i, (depth, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 2):
            stage = nn.Sequential()
            for j in range(1, depth + 1):
                stage.add_module(f"block{j}", Bottleneck(channels, width, 2 if j == 1 and i > 2 else 1))
                channels = 4 * width
            self.add_module(f"conv{i}", stage)
        self.predictions = nn.Linear(2048, 1000)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1_bn(self.conv1_conv(x))), 3, 2, padding=1)
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        return self.predictions(x.mean((2, 3)))


class VGG16(nn.Module):
    def __init__(self):
        super().__init__()
        channels = 3
        for i, (depth, width) in enumerate(zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), strict=True), 1):
            block = nn.Sequential()
            for j in range(1, depth + 1):
                block.add_module(f"conv{j}", nn.Conv2d(channels, width, 3, padding=1))
                channels = width
            self.add_module(f"block{i}", block)
        self.fc1, self.fc2, self.predictions = nn.Linear(7 * 7 * 512, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000)

    def forward(self, x):
        for block in (self.block1, self.block2, self.block3, self.block4, self.block5):
            for conv in block:
                x = F.relu(conv(x))
            x = F.max_pool2d(x, 2)
        return self.predictions(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


TWINS = {"squeezenet1_1": SqueezeNet, "mobilenet_v2": MobileNetV2, "resnet50": ResNet50, "vgg16": VGG16}


def twin(name: str, model: Any) -> nn.Module:
    """The network in PyTorch, with the weights of ours, ready for inference."""
    with torch.device("meta"):  # no random numbers for weights that are replaced at once
        peer = TWINS[name]()
    peer = peer.to_empty(device="cpu")
    remaining = {path for path, module in peer.named_modules() if next(module.parameters(recurse=False), None) is not None}
    for path, module in model.named_modules():
        if module._parameters:
            copy_layer(module, peer.get_submodule(path), flattened=512 if path == "fc1" else None)
            remaining.remove(path)
    if remaining:
        raise LookupError(f"{name}: {', '.join(sorted(remaining))} in PyTorch have no counterpart in ours")
    return peer.eval().requires_grad_(False)


def copy_layer(module: Any, peer: nn.Module, flattened: int | None = None) -> None:
    """One layer's tensors in PyTorch's layout. flattened: channels of the 7x7 feature map that a dense layer reads, which
    lies (height, width, channels) before ours and (channels, height, width) before PyTorch's."""
    from graftwork import nn as ours

    state = {}
    if isinstance(module, ours.BatchNorm):
        names = {"weight": module.gamma, "bias": module.beta, "running_mean": module.moving_mean,
                 "running_var": module.moving_variance}  # fmt: skip
        state = {"num_batches_tracked": 0, **{name: value.numpy() for name, value in names.items()}}
        peer.eps = module.epsilon
    elif isinstance(module, ours.Conv2d):
        state["weight"] = module.weight.numpy().transpose(3, 2, 0, 1)
    elif isinstance(module, ours.Linear):
        weight = module.weight.numpy()
        if flattened is not None:
            weight = weight.reshape(7, 7, flattened, -1).transpose(2, 0, 1, 3).reshape(weight.shape)
        state["weight"] = weight.T
    else:
        raise LookupError(f"no rule to copy a {type(module).__name__} into PyTorch")
    if isinstance(module, ours.Conv2d | ours.Linear) and module.bias is not None:
        state["bias"] = module.bias.numpy()
    peer.load_state_dict({name: torch.tensor(np.array(value, order="C")) for name, value in state.items()}, strict=True)


def export_onnx(peer: nn.Module, batch: int, path: Path) -> None:
    """An ONNX file of fixed batch size. The TorchScript exporter is used since the newer one needs another package; it folds
    batch norms into convolutions where it can, as the runtimes would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter advertises its successor
        torch.onnx.export(peer, (torch.zeros(batch, 3, 224, 224),), str(path), dynamo=False, opset_version=17,
                          input_names=["pictures"], output_names=["logits"])  # fmt: skip
