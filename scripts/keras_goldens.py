"""Golden outputs of Keras's own networks for tests/zoo/test_applications.py, and a check of files in both directions.

    pip install keras jax && python scripts/keras_goldens.py          # writes tests/zoo/goldens/FAMILY.{json,npz} for all
    python scripts/keras_goldens.py vgg resnet                        # only for these families
    python scripts/keras_goldens.py --check [FAMILY...]               # Keras and Graftwork read each other's .h5 files

Every weight is filled by the formula of tests/zoo/filling.py, so the goldens hold outputs and names only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "zoo")]
os.environ.setdefault("KERAS_BACKEND", "jax")

import filling  # noqa: E402 - the paths above lead to it

GOLDENS = ROOT / "tests" / "zoo" / "goldens"
CLASSES = 20
RAW = {"efficientnet", "efficientnet_v2", "convnext", "mobilenet_v3"}  # families that normalise pixels inside the network
FEATURES = 64  # of the pooled features, these many are kept
# family -> name in the zoo, perhaps with a remark -> name in keras.applications, size of the pictures, options of both
FAMILIES = {
    "vgg": {"vgg16": ("VGG16", (64, 64), {}), "vgg19": ("VGG19", (32, 64), {})},
    "resnet": {
        "resnet50": ("ResNet50", (64, 64), {}),
        "resnet101": ("ResNet101", (64, 64), {}),
        "resnet152": ("ResNet152", (64, 64), {}),
    },
    "resnet_v2": {
        "resnet50_v2": ("ResNet50V2", (64, 64), {}),
        "resnet101_v2": ("ResNet101V2", (64, 64), {}),
        "resnet152_v2": ("ResNet152V2", (64, 64), {}),
    },
    "mobilenet_v2": {
        "mobilenet_v2": ("MobileNetV2", (96, 96), {}),
        "mobilenet_v2 alpha=0.35, odd sizes": ("MobileNetV2", (65, 77), {"alpha": 0.35}),
        "mobilenet_v2 alpha=1.4": ("MobileNetV2", (64, 64), {"alpha": 1.4}),
    },
    "efficientnet": {
        "efficientnet_b0": ("EfficientNetB0", (64, 64), {}),
        "efficientnet_b0 odd sizes": ("EfficientNetB0", (65, 77), {}),
        "efficientnet_b1": ("EfficientNetB1", (64, 64), {}),
        "efficientnet_b2": ("EfficientNetB2", (64, 64), {}),
        "efficientnet_b3": ("EfficientNetB3", (64, 64), {}),
        "efficientnet_b4": ("EfficientNetB4", (64, 64), {}),
        "efficientnet_b5": ("EfficientNetB5", (64, 64), {}),
        # With 64x64 pixels, these weights make much of rounding: float32 is 1.3e-4 away from float64, both in Graftwork
        "efficientnet_b6": ("EfficientNetB6", (80, 64), {}),
        "efficientnet_b7": ("EfficientNetB7", (64, 64), {}),
    },
    "efficientnet_v2": {
        "efficientnet_v2_b0": ("EfficientNetV2B0", (64, 64), {}),
        "efficientnet_v2_b0 without preprocessing": ("EfficientNetV2B0", (65, 77), {"include_preprocessing": False}),
        "efficientnet_v2_b1": ("EfficientNetV2B1", (64, 64), {}),
        "efficientnet_v2_b2": ("EfficientNetV2B2", (64, 64), {}),
        "efficientnet_v2_b3": ("EfficientNetV2B3", (64, 64), {}),
        "efficientnet_v2_s": ("EfficientNetV2S", (64, 64), {}),
        "efficientnet_v2_m": ("EfficientNetV2M", (64, 64), {}),
        "efficientnet_v2_l": ("EfficientNetV2L", (64, 64), {}),
    },
    "convnext": {
        "convnext_tiny": ("ConvNeXtTiny", (64, 64), {}),
        "convnext_tiny without preprocessing": ("ConvNeXtTiny", (65, 77), {"include_preprocessing": False}),
        "convnext_small": ("ConvNeXtSmall", (64, 64), {}),
        "convnext_base": ("ConvNeXtBase", (64, 64), {}),
        "convnext_large": ("ConvNeXtLarge", (64, 64), {}),
        "convnext_xlarge": ("ConvNeXtXLarge", (64, 64), {}),
    },
    "inception_v3": {"inception_v3": ("InceptionV3", (96, 107), {})},
    "inception_resnet_v2": {"inception_resnet_v2": ("InceptionResNetV2", (96, 107), {})},
    "xception": {"xception": ("Xception", (71, 80), {})},
    "mobilenet": {
        "mobilenet": ("MobileNet", (64, 96), {}),
        "mobilenet alpha=0.25, odd sizes": ("MobileNet", (65, 77), {"alpha": 0.25}),
        "mobilenet alpha=0.5, depth_multiplier=2": ("MobileNet", (33, 64), {"alpha": 0.5, "depth_multiplier": 2}),
    },
    "mobilenet_v3": {
        "mobilenet_v3_small": ("MobileNetV3Small", (64, 96), {}),
        "mobilenet_v3_large": ("MobileNetV3Large", (64, 96), {}),
        "mobilenet_v3_small alpha=0.75, odd sizes": ("MobileNetV3Small", (65, 77), {"alpha": 0.75}),
        "mobilenet_v3_small minimalistic": ("MobileNetV3Small", (64, 64), {"minimalistic": True}),
        "mobilenet_v3_large alpha=1.25": ("MobileNetV3Large", (65, 64), {"alpha": 1.25}),
        "mobilenet_v3_large minimalistic, no preprocessing": (
            "MobileNetV3Large", (64, 64), {"minimalistic": True, "include_preprocessing": False}
        ),
    },
    "densenet": {
        "densenet121": ("DenseNet121", (64, 77), {}),
        "densenet169": ("DenseNet169", (32, 64), {}),
        "densenet201": ("DenseNet201", (32, 64), {}),
    },
    "nasnet": {
        "nasnet_mobile": ("NASNetMobile", (64, 77), {}),
        "nasnet_large": ("NASNetLarge", (64, 77), {}),
    },
}
MODELS = {name: golden for family in FAMILIES.values() for name, golden in family.items()}
# Tested by `make parity` only
LARGE: set[str] = {
    "efficientnet_b4", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7", "efficientnet_v2_m", "efficientnet_v2_l",
    "convnext_small", "convnext_base", "convnext_large", "convnext_xlarge", "inception_resnet_v2", "nasnet_large",
}  # fmt: skip
LIVE = {"convnext_large", "convnext_xlarge"}  # of these, which have 200 and 350 million parameters, no goldens are kept


def build(name: str):
    """Keras's network with formula weights, giving logits and the pooled features before them."""
    import keras

    keras.backend.clear_session()  # names that Keras makes up are counted per session
    kind, size, options = MODELS[name]
    model = getattr(keras.applications, kind)(
        weights=None, input_shape=(*size, 3), classes=CLASSES, classifier_activation=None, **options
    )
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([filling.values(layer.name, tensor_name(v), tuple(v.shape)) for v in layer.weights])
        if hasattr(layer, "finalize_state"):  # Normalization computes with copies of its weights
            layer.finalize_state()
    return model


def tensor_name(variable) -> str:
    """A tensor's name in the formula. Keras 3 calls a depthwise kernel "kernel"; its files and Keras 2 say which it is."""
    # ConvNeXt's "depthwise_conv" is a grouped convolution, whose kernel has one input channel
    depthwise = re.search("depthwise|dwconv|conv_dw", variable.path) and variable.name == "kernel" and variable.shape[2] > 1
    if depthwise:
        return "depthwise_kernel"
    return re.sub(r"^variable_\d+$", "variable", variable.name)  # ConvNeXt's factors have no name and are counted


def pictures(name: str) -> np.ndarray:
    """Two inputs of the network: pixels where the network normalises them itself, or preprocessed pictures."""
    family = next(family for family, models in FAMILIES.items() if name in models)
    _, size, options = MODELS[name]
    raw = family in RAW and options.get("include_preprocessing", True)
    return filling.pixels(*size) if raw else filling.pictures(*size)


def outputs(model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and the average over positions of the last feature map, which is what the classifier's layers begin with."""
    import keras

    pools = [layer for layer in model.layers if isinstance(layer, keras.layers.GlobalAveragePooling2D)]
    head = pools[-1] if pools else next(layer for layer in model.layers if isinstance(layer, keras.layers.Flatten))
    logits, features = keras.Model(model.input, [model.output, head.input])(x, training=False)
    return np.asarray(logits), np.asarray(features).mean((1, 2))


def listing(model) -> dict[str, list]:
    """Layer name -> [[tensor name, shape], ...] of all layers with weights, sorted by name."""
    layers = {x.name: [[tensor_name(v), list(v.shape)] for v in x.weights] for x in model.layers if x.weights}
    return dict(sorted(layers.items()))


def digest(layers: dict[str, list]) -> str:
    return hashlib.sha256(json.dumps(layers, sort_keys=True).encode()).hexdigest()


def by_tensors(layers: dict[str, list]) -> dict[str, list[str]]:
    """The listing without shapes, the other way around: names of tensors ("kernel bias") -> layers that have these."""
    groups: dict[str, list[str]] = {}
    for layer, tensors in layers.items():
        groups.setdefault(" ".join(name for name, _ in tensors), []).append(layer)
    return groups


def write(family: str) -> None:
    """The golden files of one family; its first network is listed layer by layer."""
    import keras

    arrays, facts = {}, {}
    for name, (kind, size, options) in FAMILIES[family].items():
        if name in LIVE:
            continue
        model = build(name)
        x = pictures(name)
        logits, pooled = outputs(model, x)
        apart = np.abs(logits[0] - logits[1]).max() / np.abs(logits).max()
        size_of = f"{model.count_params():,} parameters, largest logit {np.abs(logits).max():.3g}"
        print(f"{name}: {size_of}, {apart:.2f} apart", flush=True)
        if not apart > 0.05:
            raise SystemExit(f"{name}: the two pictures give almost the same logits, which would test nothing")
        arrays[f"{name}/logits"], arrays[f"{name}/features"] = logits, pooled[:, :FEATURES]
        layers = listing(model)
        facts[name] = {"size": size, "options": options, "layers": len(layers), "digest": digest(layers)}
        facts[name]["parameters"] = getattr(keras.applications, kind)(weights=None, **options).count_params()
        if name in LARGE:
            facts[name]["large"] = True
        if len(facts) == 1:
            facts[name]["names"] = by_tensors(layers)
        np.savez_compressed(GOLDENS / f"{family}.npz", **arrays)  # after each network: the large ones take long
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(fact)}" for name, fact in facts.items())
        head = f'"keras": "{keras.__version__}", "classes": {CLASSES}'
        (GOLDENS / f"{family}.json").write_text(f'{{{head}, "models": {{\n{lines}\n}}}}\n')


def check(family: str) -> None:
    """Keras saves, we load and compare; we save, Keras loads and compares."""
    from graftwork import zoo

    for name, (_, size, options) in FAMILIES[family].items():
        theirs, x = build(name), pictures(name)
        expected = np.asarray(theirs(x, training=False))
        with tempfile.TemporaryDirectory() as folder:
            file, back = f"{folder}/keras.h5", f"{folder}/back.h5"
            save_legacy(theirs, file)
            ours = zoo.create(name.split()[0], weights=file, classes=CLASSES, input_shape=(*size, 3), **options)
            error = relative(zoo_logits(ours, x), expected)
            zoo.save_weights(ours, back)
            for variable in theirs.variables:
                variable.assign(np.zeros(variable.shape, np.float32))
            load_legacy(theirs, back)
            again = relative(np.asarray(theirs(x, training=False)), expected)
        print(f"{name}: Keras's file in Graftwork, relative error {error:.1e}; ours in Keras {again:.1e}", flush=True)


def save_legacy(model, path: str) -> None:
    """Weights alone in the legacy layout, as published files are; Keras 3 still holds the writer, but its own
    `save_weights` only makes .weights.h5."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


def load_legacy(model, path: str) -> None:
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "r") as file:
        legacy_h5_format.load_weights_from_hdf5_group_by_name(file, model)


def zoo_logits(model, x: np.ndarray) -> np.ndarray:
    import graftwork as gw

    with gw.no_grad():
        return model(gw.tensor(x)).numpy()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}; all by default")
    parser.add_argument("--check", action="store_true", help="read each other's files instead of writing goldens")
    args = parser.parse_args()
    if unknown := set(args.families) - set(FAMILIES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; the families are {', '.join(FAMILIES)}")
    for family in args.families or FAMILIES:
        check(family) if args.check else write(family)
