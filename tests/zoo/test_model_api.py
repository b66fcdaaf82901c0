"""What all models of the zoo can do: any layer's activations, names for classes, new heads, grey images."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, zoo
from graftwork.nn import functional as F
from graftwork.zoo import fetch, labels
from graftwork.zoo.base import drop_path


@pytest.fixture
def x(rng):
    return gw.tensor(rng.random((2, 32, 32, 3), np.float32))


# -- features of any layer ---------------------------------------------------------------------------------------------


def test_features_are_what_modules_return(x):
    model = zoo.create("resnet20", input_shape=(32, 32, 3))
    found = model.features(x, layers=["conv1", "stage2.0", "stage3/1/bn2", "classifier"])
    assert {name: value.shape for name, value in found.items()} == {
        "conv1": (2, 32, 32, 16), "stage2.0": (2, 16, 16, 32), "stage3/1/bn2": (2, 8, 8, 64), "classifier": (2, 10),
    }  # fmt: skip
    np.testing.assert_array_equal(found["conv1"].numpy(), model.conv1(x).numpy())
    np.testing.assert_array_equal(found["classifier"].numpy(), model(x).numpy())
    block = model.stage1(F.relu(model.bn1(model.conv1(x))))
    np.testing.assert_array_equal(found["stage2.0"].numpy(), model.stage2[0](block).numpy())


def test_layers_by_their_names_in_files_with_rectifiers_where_keras_has_them(x):
    model = zoo.create("vgg16", include_top=False, input_shape=(32, 32, 3))
    found = model.features(x, layers=["block1_conv2", "block3_conv1"])
    assert found["block1_conv2"].numpy().min() == 0 and found["block3_conv1"].shape == (2, 8, 8, 256)


def test_pooled_features(x):
    model = zoo.create("resnet20")
    maps = model.features(x, layers=["stage1", "classifier"])
    for pooling, pool in (("avg", np.mean), ("max", np.max)):
        vectors = model.features(x, pooling, layers=["stage1", "classifier"])
        np.testing.assert_allclose(vectors["stage1"].numpy(), pool(maps["stage1"].numpy(), (1, 2)), rtol=1e-5)
        assert vectors["classifier"].shape == (2, 10)
    assert model.features(x).shape == (2, 64) and model.features(x, None).shape == (2, 8, 8, 64)


def test_features_in_a_graph_and_with_gradients(x):
    model = zoo.create("resnet20")
    fast = gw.compile(lambda x: model.features(x, layers=["stage1", "stage2"]))
    with gw.no_grad():
        eager, replayed = model.features(x, layers=["stage1", "stage2"]), fast(x)
    for name in eager:
        # passes fold batch norm into convolutions, which rounds differently
        np.testing.assert_allclose(replayed[name].numpy(), eager[name].numpy(), rtol=1e-4, atol=1e-4)
    model.features(x, layers="stage1")["stage1"].sum().backward()
    assert model.conv1.weight.grad is not None


def test_features_leave_no_trace(x):
    from graftwork.nn.autograd import mode

    model = zoo.create("resnet20", include_top=False)
    with pytest.raises(errors.ModelError, match="has no layer 'stage4'; did you mean stage"):
        model.features(x, layers=["stage4"])
    with pytest.raises(errors.ModelError, match="pooling='mean'"):
        model.features(x, pooling="mean", layers=["stage1"])
    assert mode.taps is None


def test_layers_that_do_not_run_are_named(x):
    model = zoo.create("resnet20")
    model.spare = gw.nn.Conv2d(3, 3, 1)
    with pytest.raises(errors.ModelError, match="spare took no part"):
        model.features(x, layers=["conv1", "spare"])


def test_blocks_within_blocks(x):
    from graftwork.nn.modules.module import listen

    model = zoo.create("resnet20")
    with listen([model.conv1]) as outer:
        inner = model.features(x, layers=["conv1", "stage1"])
        assert outer(model.conv1) is inner["conv1"]


# -- names of classes --------------------------------------------------------------------------------------------------


def class_index(folder, classes=1000):
    path = folder / "imagenet_class_index.json"
    path.write_text(json.dumps({str(i): [f"n{i:08}", f"thing {i}"] for i in range(classes)}))
    return path


def test_imagenet_names_from_the_folder_of_weights(tmp_path, monkeypatch):
    class_index(tmp_path)
    monkeypatch.setenv("GRAFTWORK_WEIGHTS", str(tmp_path))
    p = np.zeros((2, 1000), np.float32)
    p[0, 7], p[0, 3], p[1, 999] = 0.6, 0.3, 1
    first, second = zoo.decode_predictions(p, top=2)
    assert first == [("n00000007", "thing 7", pytest.approx(0.6)), ("n00000003", "thing 3", pytest.approx(0.3))]
    assert second[0].label == "thing 999" and second[0].probability == 1
    assert zoo.decode_predictions(p[0], labels=tmp_path / "imagenet_class_index.json")[0][0].id == "n00000007"


def test_imagenet_names_that_are_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_WEIGHTS", "http://127.0.0.1:9")
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    with pytest.raises(errors.FetchError, match="imagenet_class_index.json"):
        zoo.decode_predictions(np.zeros((1, 1000)))


def test_labels_of_embedded_weights():
    model = zoo.create("glyphnet", weights="glyphs")
    assert len(model.labels) == 47
    best = zoo.decode_predictions(np.eye(47)[[3, 11]], top=1, labels=model.labels)
    assert [row[0][:2] for row in best] == [("3", "3"), ("11", "B")]
    assert zoo.create("glyphnet", weights="glyphs", classes=3, new_head=True).labels is None


def test_ties_and_tops_beyond_the_classes():
    found = zoo.decode_predictions([0.25, 0.5, 0.25], top=9, labels=list("abc"))
    assert [p.label for p in found[0]] == ["b", "a", "c"]


def test_predictions_that_cannot_be_named(tmp_path):
    with pytest.raises(errors.DataError, match="10 classes, not ImageNet's 1000"):
        zoo.decode_predictions(np.zeros((1, 10)))
    with pytest.raises(errors.DataError, match="2 labels for 3 classes"):
        zoo.decode_predictions(np.zeros((1, 3)), labels=["a", "b"])
    with pytest.raises(errors.DataError, match="999 labels in .* for 1000"):
        zoo.decode_predictions(np.zeros((1, 1000)), labels=class_index(tmp_path, 999))
    with pytest.raises(errors.ShapeError, match="shape"):
        zoo.decode_predictions(np.zeros((1, 2, 3)))
    with pytest.raises(errors.ShapeError, match="top=0"):
        zoo.decode_predictions(np.zeros((1, 3)), top=0, labels=list("abc"))
    for text in ("[]]", "[1]", '{"0": 3}', '{"1": ["a", "b"]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(errors.DataError, match="no list of class names"):
            zoo.decode_predictions(np.zeros((1, 1)), labels=tmp_path / "bad.json")
    with pytest.raises(errors.DataError, match="cannot be read"):
        zoo.decode_predictions(np.zeros((1, 1)), labels=tmp_path / "none.json")
    assert labels.IMAGENET.filename == "imagenet_class_index.json"


# -- a trained trunk under a new head ----------------------------------------------------------------------------------


def test_new_head(tmp_path, x):
    old, path = zoo.create("resnet20"), tmp_path / "w.h5"
    zoo.save_weights(old, path)
    with pytest.raises(errors.WeightsError, match="new_head=True"):
        zoo.create("resnet20", weights=path, classes=7)
    model = zoo.create("resnet20", weights=path, classes=7, new_head=True)
    np.testing.assert_array_equal(model.features(x).numpy(), old.features(x).numpy())
    assert model(x).shape == (2, 7)
    same_size = zoo.create("resnet20", weights=path, new_head=True)
    head = same_size.classifier.weight.numpy()
    assert not np.array_equal(head, old.classifier.weight.numpy())
    assert 0.1 < head.std() * np.sqrt(sum(head.shape) / 2) < 10  # drawn, not what happened to be in memory


def test_new_head_from_a_file_without_a_top(tmp_path, rng):
    """ConvNeXt's last normalisation is named differently there, and belongs to the trunk."""
    trunk, path = zoo.create("convnext_tiny", include_top=False, pooling="avg", input_shape=(32, 32, 3)), tmp_path / "w.h5"
    zoo.save_weights(trunk, path)
    model = zoo.create("convnext_tiny", weights=path, classes=7, new_head=True, input_shape=(32, 32, 3))
    x = gw.tensor(rng.random((1, 32, 32, 3), np.float32) * 255)
    with gw.no_grad():
        np.testing.assert_array_equal(model.features(x).numpy(), trunk(x).numpy())


def test_new_head_needs_a_trunk():
    for options in ({}, {"weights": "w.h5", "include_top": False}):
        with pytest.raises(errors.ModelError, match="new_head=True puts"):
            zoo.create("resnet20", new_head=True, **options)


# -- one channel -------------------------------------------------------------------------------------------------------


def grey_and_colour(name, tmp_path, rng, side=64, **options):
    """Outputs for grey pictures of the network for one channel, and of that for three equal ones."""
    colour, path = zoo.create(name, input_shape=(side, side, 3), include_top=False, **options), tmp_path / "w.h5"
    for p in colour.parameters():
        if p.ndim == 1:
            p.data[...] += 0.1
    zoo.save_weights(colour, path)
    grey = zoo.create(name, weights=path, input_shape=(side, side, 1), include_top=False, **options)
    pictures = rng.integers(0, 256, (2, side, side, 1), np.uint8)
    with gw.no_grad():
        return grey(grey.preprocess(pictures)).numpy(), colour(colour.preprocess(np.repeat(pictures, 3, 3))).numpy()


@pytest.mark.parametrize("name", ["squeezenet1_0", "mobilenet_v2"])
def test_grey_pictures_in_a_network_for_colours(name, tmp_path, rng):
    """Equal but for the order of sums: no padding in SqueezeNet's first layer, no mean of its own for a colour in "tf"."""
    grey, colour = grey_and_colour(name, tmp_path, rng)
    np.testing.assert_allclose(grey, colour, atol=1e-4 * np.abs(colour).max())


def test_networks_whose_kernels_cannot_be_summed(tmp_path):
    for name in ("efficientnet_b0", "densenet121"):
        path = tmp_path / f"{name}.h5"
        zoo.save_weights(zoo.create(name, input_shape=(32, 32, 3), include_top=False), path)
        with pytest.raises(errors.ModelError, match="leave input_shape at three channels"):
            zoo.create(name, weights=path, input_shape=(32, 32, 1), include_top=False)


def test_weights_made_for_one_channel_stay_as_they_are(tmp_path):
    first, path = zoo.create("resnet20", input_shape=(32, 32, 1)), tmp_path / "w.h5"
    zoo.save_weights(first, path)
    second = zoo.create("resnet20", weights=path, input_shape=(32, 32, 1))
    np.testing.assert_array_equal(first.conv1.weight.numpy(), second.conv1.weight.numpy())


# -- stochastic depth --------------------------------------------------------------------------------------------------


def test_stochastic_depth_drops_whole_images_in_training_only():
    gw.manual_seed(0)
    x = gw.tensor(np.ones((64, 2, 2, 3), np.float32))
    y = drop_path(x, 0.5, training=True).numpy()
    assert set(np.unique(y)) == {0.0, 2.0} and (y == y[:, :1, :1, :1]).all()
    assert drop_path(x, 0.5, training=False) is x


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_v2_b0"])
def test_training_differs_from_run_to_run_and_inference_does_not(name, rng):
    model = zoo.create(name, input_shape=(32, 32, 3), drop_connect_rate=0.9, classes=5)
    x = gw.tensor(rng.random((4, 32, 32, 3), np.float32) * 255)
    with gw.no_grad():
        np.testing.assert_array_equal(model(x).numpy(), model(x).numpy())
        model.train()
        assert not np.array_equal(model(x).numpy(), model(x).numpy())


# -- weights out of a .keras archive -----------------------------------------------------------------------------------


def archive(path, weights):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in (("config.json", "{}"), ("metadata.json", "{}"), ("model.weights.h5", weights)):
            file.writestr(name, content)


def test_weights_out_of_a_keras_archive(tmp_path):
    first, path = zoo.create("lenet5"), tmp_path / "w.weights.h5"
    zoo.save_weights(first, path, layout="weights.h5")
    archive(tmp_path / "model.keras", path.read_bytes())
    second = zoo.create("lenet5", weights=tmp_path / "model.keras")
    np.testing.assert_array_equal(first.F6.weight.numpy(), second.F6.weight.numpy())
    content = bytearray((tmp_path / "model.keras").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "model.keras").write_bytes(content)
    with pytest.raises(errors.WeightsError, match=r"model\.keras"):
        zoo.create("lenet5", weights=tmp_path / "model.keras")
