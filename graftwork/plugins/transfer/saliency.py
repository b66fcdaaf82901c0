"""Where a classifier looked: Grad-CAM (Selvaraju et al. 2017) on the trunk's last feature map, by our own autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import ModelError, ShapeError
from ...nn import Tensor, grad, no_grad, tensor
from ...zoo import images


def grad_cam(
    classifier: Any, pictures: Sequence[Any], classes: Any = None, batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Heat maps and the pixels they belong to: float32 (n, height, width) from 0 to 1, uint8 (n, height, width, channels).

    classifier: an ImageClassifier with a linear model, or a FineTuned. classes: the class number that each picture is asked
    about; what was predicted by default. The channels of the last feature map count by the mean gradient of the class's
    score; what speaks against the class is cut off. The maps have the pixels' size, stretched bilinearly.
    Raises ModelError for a classifier whose model on top has no weights.
    """
    trunk, size = trunk_of(classifier), input_size(classifier)
    pixels = images.to_batch(pictures, size, trunk.input_shape[2])
    wanted = None if classes is None else np.asarray(classes)
    if wanted is not None and len(wanted) != len(pixels):
        raise ShapeError(f"{len(wanted)} classes for {len(pixels)} pictures; expected one each")
    trunk.eval()
    maps = []
    for i in range(0, len(pixels), batch_size):
        part = slice(i, i + batch_size)
        maps.append(_maps(classifier, trunk, pixels[part], None if wanted is None else wanted[part]))
    return np.stack([_stretched(m, size) for m in np.concatenate(maps)]), pixels


def can_explain(classifier: Any) -> bool:
    """Whether `grad_cam` works for a classifier: fine-tuned, or linear on the average of the trunk's end."""
    if hasattr(classifier, "recipe"):
        return True
    at_end = getattr(classifier, "layer", None) is None and getattr(classifier, "pooling", "avg") == "avg"
    return at_end and np.size(getattr(classifier, "weight", ())) > 0


def _maps(classifier: Any, trunk: Any, pixels: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    with no_grad():
        found = trunk.trunk(trunk.normalise(pixels)).numpy()
    activation = tensor(found, requires_grad=True)
    scores = _scores(classifier, trunk.pooled(activation, "avg"))
    if classes is None:
        classes = scores.numpy().argmax(axis=1)
    chosen = np.zeros(scores.shape, np.float32)
    chosen[np.arange(len(classes)), classes] = 1
    (gradient,) = grad((scores * tensor(chosen, device=scores.device)).sum(), [activation])
    weights = gradient.numpy().mean(axis=(1, 2), keepdims=True)
    heat = np.maximum((weights * found).sum(axis=-1), 0)
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12)


def _scores(classifier: Any, features: Tensor) -> Tensor:
    """What is on top of the pooled features, as ops."""
    if hasattr(classifier, "recipe"):
        network = classifier.model
        return network.head((features - network.mean) * network.scale)
    if not can_explain(classifier):
        raise ModelError(
            f"this {type(classifier).__name__} has no linear model on top of the trunk's averaged output; Grad-CAM needs the "
            "gradients of its scores there"
        )
    arrays = (classifier.mean, 1 / classifier.scale, classifier.weight.T, classifier.bias)
    mean, scale, matrix, bias = (tensor(np.asarray(a, np.float32), device=features.device) for a in arrays)
    return ((features - mean) * scale) @ matrix + bias


def trunk_of(classifier: Any) -> Any:
    """The zoo's network below an ImageClassifier or a FineTuned."""
    return classifier.model.trunk if hasattr(classifier, "recipe") else classifier.model


def input_size(classifier: Any) -> tuple[int, int]:
    """(height, width) of what the classifier's network sees in inference."""
    trunk = trunk_of(classifier)
    return classifier.recipe.whole_size(trunk) if hasattr(classifier, "recipe") else tuple(trunk.input_shape[:2])


def _stretched(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(heat.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A uint8 picture that is bright where the map is, and dim and grey elsewhere."""
    colour = pixels.astype(np.float32)
    grey = colour.mean(axis=2, keepdims=True) * 0.35
    share = np.clip(heat, 0, 1)[..., None] ** 0.7
    return (colour * share + grey * (1 - share)).astype(np.uint8)
