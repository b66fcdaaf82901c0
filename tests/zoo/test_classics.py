"""Networks that keras.applications does not have, and what EfficientNet's published files need."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, zoo
from graftwork.zoo.alexnet import response_norm
from graftwork.zoo.efficientnet import Normalization
from graftwork.zoo.images import IMAGENET_DEVIATION, IMAGENET_MEAN


@pytest.mark.parametrize(("name", "options", "parameters", "trunk"), [
    # the papers' own numbers, or those of their reference implementations
    ("alexnet", {}, 60_965_224, (6, 6, 256)), ("alexnet", {"groups": 1}, 62_378_344, (6, 6, 256)),
    ("squeezenet1_0", {}, 1_248_424, (13, 13, 512)), ("squeezenet1_1", {}, 1_235_496, (13, 13, 512)),
    ("lenet5", {}, 61_706, (1, 1, 120)),
])  # fmt: skip
def test_sizes(name, options, parameters, trunk):
    model = zoo.create(name, **options)
    assert model.count_parameters() == parameters
    assert zoo.find(name).info.get("parameters", parameters) == parameters or options
    with gw.no_grad():
        assert model.trunk(gw.tensor(np.zeros((1, *model.input_shape), np.float32))).shape[1:] == trunk


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_0", "lenet5"])
def test_smallest_images(name):
    side = zoo.create(name, include_top=False).smallest
    model = zoo.create(name, input_shape=(side, side, 3), include_top=False, pooling="max")
    with gw.no_grad():
        assert model(gw.tensor(np.ones((1, side, side, 3), np.float32))).ndim == 2
    with pytest.raises(errors.ShapeError, match=f"at least {side}"):
        zoo.create(name, input_shape=(side - 1, side, 3))


def test_response_norm_is_the_papers(rng):
    x = rng.normal(size=(2, 3, 3, 9)).astype(np.float32) * 50
    expected = np.empty_like(x)
    for i in range(9):
        squares = (x[..., max(0, i - 2) : i + 3].astype(np.float64) ** 2).sum(-1)
        expected[..., i] = x[..., i] / (2 + 1e-4 * squares) ** 0.75
    np.testing.assert_allclose(response_norm(gw.tensor(x)).numpy(), expected, rtol=1e-5)


def test_alexnet_in_halves():
    with pytest.raises(errors.ConfigError, match="groups=3"):
        zoo.create("alexnet", groups=3)


def test_lenet_learns(rng):
    model = zoo.create("lenet5").train()
    optimizer = gw.nn.optim.SGD(model.parameters(), lr=0.1)
    x, y = gw.tensor(rng.random((8, 32, 32, 1), np.float32)), gw.tensor(np.arange(8))
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = gw.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("published", [True, False])
def test_deviations_where_variances_belong(published, rng):
    """A published file's values divide by the deviation itself; any other variance by its root."""
    layer, pixels = Normalization(3), rng.integers(0, 256, (2, 4, 4, 3)).astype(np.float32)
    variance = IMAGENET_DEVIATION if published else IMAGENET_DEVIATION**2
    layer.load_state_dict({"mean": IMAGENET_MEAN, "variance": variance, "count": 0})
    expected = (pixels / 255 - IMAGENET_MEAN) / IMAGENET_DEVIATION
    np.testing.assert_allclose(layer(gw.tensor(pixels)).numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gw.compile(layer)(gw.tensor(pixels)).numpy(), expected, rtol=1e-4, atol=1e-5)
