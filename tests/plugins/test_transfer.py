"""The transfer plugin on real handwritten digits: learning, saving, similar images, clusters, and what it refuses."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest

from graftwork import errors, nn, zoo
from graftwork.plugins.transfer import FeatureExtractor, ImageClassifier, cluster, similar
from graftwork.zoo.images import list_labelled

pytest.importorskip("sklearn")
CLASSES = ("1", "4", "7")
EACH = 24


def digit_images():
    """uint8 (n, 8, 8, 1) pictures of three digits, and class numbers in blocks of EACH."""
    from sklearn.datasets import load_digits

    data = load_digits()
    places = np.concatenate([np.flatnonzero(data.target == int(c))[:EACH] for c in CLASSES])
    return np.round(data.images[places] * (255 / 16)).astype(np.uint8)[..., None], np.repeat(np.arange(3), EACH)


@pytest.fixture(scope="module")
def digits():
    return digit_images()


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """The digits as PNG files, a sub-folder each."""
    from PIL import Image

    root = tmp_path_factory.mktemp("digits")
    for i, (pixels, label) in enumerate(zip(*digits, strict=True)):
        (root / CLASSES[label]).mkdir(exist_ok=True)
        Image.fromarray(pixels[:, :, 0]).save(root / CLASSES[label] / f"{i:03}.png")
    return root


@pytest.fixture(scope="module")
def trunk():
    return zoo.create("glyphnet", weights="glyphs", include_top=False)


@pytest.fixture(scope="module")
def features(trunk, digits):
    return FeatureExtractor(trunk).transform(list(digits[0]))


@pytest.fixture(scope="module")
def saved(trunk, features, digits, tmp_path_factory):
    """A classifier, and the file it was saved to."""
    classifier = ImageClassifier(trunk, "glyphnet").fit_features(features, digits[1], CLASSES)
    path = tmp_path_factory.mktemp("saved") / "digits.h5"
    classifier.save(path)
    return classifier, path


def damaged(saved, tmp_path, change):
    """A copy of the saved classifier with one thing changed in the file."""
    path = tmp_path / "damaged.h5"
    shutil.copy(saved[1], path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


# Features


def test_features_do_not_depend_on_the_batch_or_on_where_pictures_come_from(trunk, features, digits, folder):
    assert features.shape == (72, 192) and features.dtype == np.float32
    small = FeatureExtractor(trunk, batch_size=5).transform(list(digits[0][:12]))
    np.testing.assert_allclose(small, features[:12], rtol=1e-4, atol=1e-5)  # float32 sums in another order
    paths, _, _ = list_labelled(folder)
    np.testing.assert_array_equal(FeatureExtractor(trunk).fit(paths).transform(paths), features)
    np.testing.assert_array_equal(FeatureExtractor(trunk).fit_transform(paths[:32]), features[:32])


def test_extractor_works_in_a_pipeline(trunk, digits):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pictures, labels = list(digits[0]), digits[1]
    model = make_pipeline(FeatureExtractor(trunk), LogisticRegression(max_iter=1000)).fit(pictures[::2], labels[::2])
    assert model.score(pictures[1::2], labels[1::2]) > 0.9


def test_features_of_nothing_and_of_no_image_model():
    with pytest.raises(errors.DataError, match="no images given"):
        FeatureExtractor(zoo.create("glyphnet", include_top=False)).transform([])
    with pytest.raises(errors.ModelError, match="Linear has no deep features"):
        FeatureExtractor(nn.Linear(2, 2))


# Classifier


def test_fit_from_paths_and_a_round_trip_through_the_file(trunk, folder, tmp_path):
    paths, labels, names = list_labelled(folder)
    train = np.arange(len(paths)) % 3 > 0
    chosen = [p for p, t in zip(paths, train, strict=True) if t]
    others = [p for p, t in zip(paths, train, strict=True) if not t]
    classifier = ImageClassifier(trunk, "glyphnet").fit(chosen, labels[train], names)
    assert classifier.score(others, labels[~train]) > 0.9  # 24 pictures: at most two wrong
    classifier.save(tmp_path / "c.h5")
    loaded = ImageClassifier.load(tmp_path / "c.h5")
    assert (loaded.classes, loaded.C_, loaded.model_name) == (list(CLASSES), classifier.C_, "glyphnet")
    probabilities = loaded.predict_proba(others)
    np.testing.assert_array_equal(probabilities, classifier.predict_proba(others))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(loaded.predict(others), probabilities.argmax(axis=1))


def assert_same_probabilities(scores, expected):
    """scikit-learn computes in the features' float32, we in float64: six digits agree in logits of about 10."""
    np.testing.assert_allclose(scores / scores.sum(1, keepdims=True), expected, rtol=1e-4)


def test_scores_are_those_of_scikit_learn(features, digits, saved):
    from graftwork.plugins.transfer.classifier import logistic_regression

    classifier, labels = saved[0], digits[1]
    pipeline = logistic_regression(classifier.C_).fit(features, labels)
    scores = np.exp(classifier.decision(features))
    assert_same_probabilities(scores, pipeline.predict_proba(features))


def test_two_classes(trunk, features, digits, tmp_path):
    from graftwork.plugins.transfer.classifier import logistic_regression

    two = digits[1] < 2
    classifier = ImageClassifier(trunk, "glyphnet", C=0.1).fit_features(features[two], digits[1][two])
    assert classifier.classes == ["0", "1"] and classifier.weight.shape == (2, 192)
    scores = np.exp(classifier.decision(features[two]))
    pipeline = logistic_regression(0.1).fit(features[two], digits[1][two])
    assert_same_probabilities(scores, pipeline.predict_proba(features[two]))
    classifier.save(tmp_path / "two.h5")
    assert ImageClassifier.load(tmp_path / "two.h5").classes == ["0", "1"]


def test_one_picture_a_class_is_enough(trunk, features):
    few = features[::EACH]
    classifier = ImageClassifier(trunk, "glyphnet").fit_features(few, [0, 1, 2])
    assert classifier.decision(few).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "labels, names, words",
    [
        ([0] * 72, None, "labels of 1 classes"),
        ([0, 1], None, "72 images with 2 labels"),
        (np.arange(72) % 2 * 2, None, r"labels \[0, 2\] for 2 class names"),
        (np.arange(72) % 2, ["a", "b", "c"], "for 3 class names"),
    ],
    ids=["one class", "too few", "a gap", "names"],
)
def test_labels_that_do_not_fit(trunk, features, labels, names, words):
    classifier = ImageClassifier(trunk, "glyphnet")
    with pytest.raises(errors.DataError, match=words):
        classifier.fit_features(features, labels, names)
    with pytest.raises(errors.DataError, match="learned nothing yet"):
        classifier.save("never-written.h5")


def test_features_that_are_not_finite(trunk, features, digits):
    broken = features.copy()
    broken[3, 5] = np.nan
    with pytest.raises(errors.DataError, match="not finite"):
        ImageClassifier(trunk, "glyphnet").fit_features(broken, digits[1])


@pytest.mark.parametrize("strength", [0, -1.0, float("nan"), float("inf")])
def test_impossible_regularisation(trunk, strength):
    with pytest.raises(errors.ConfigError, match="expected a positive number"):
        ImageClassifier(trunk, "glyphnet", C=strength)


# Files


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f["head"].__delitem__("bias"),
        lambda f: f.__delitem__("trunk"),
        lambda f: f["trunk"].__delitem__("stem.bn.gamma"),
        lambda f: (f["head"].__delitem__("mean"), f["head"].create_dataset("mean", data=np.zeros(7))),
        lambda f: (f["head"].__delitem__("weight"), f["head"].create_dataset("weight", data=[b"x"])),
        lambda f: f.attrs.__setitem__("info", "{}"),
        lambda f: f.attrs.__setitem__("info", "[1]"),
        lambda f: f.attrs.__setitem__("info", "{not json"),
        lambda f: f.attrs.__setitem__("info", f.attrs["info"].replace('"4", ', "")),
        lambda f: f.attrs.__setitem__("info", f.attrs["info"].replace("[32, 32, 1]", "[32, 32, 1000000000]")),
        lambda f: f.attrs.__setitem__("info", f.attrs["info"].replace('"glyphnet"', "5")),
        lambda f: f.attrs.__delitem__("graftwork_checkpoint"),
        lambda f: f.attrs.__setitem__("graftwork_checkpoint", 99),
        lambda f: f.__setitem__("other", h5py.ExternalLink("elsewhere.h5", "/")),
        lambda f: f["head"].__setitem__("soft", h5py.SoftLink("/trunk")),
        lambda f: f["head"].create_dataset("bomb", (1 << 40,), "f8", chunks=(1024,)),
    ],
)
def test_damaged_or_hostile_files_are_refused(saved, tmp_path, change):
    with pytest.raises((errors.WeightsError, errors.CheckpointError), match="damaged.h5"):
        ImageClassifier.load(damaged(saved, tmp_path, change))


@pytest.mark.parametrize("size", [0, 1, 100, 5000, 200_000])
def test_truncated_files_are_refused(saved, tmp_path, size):
    path = tmp_path / "short.h5"
    path.write_bytes(saved[1].read_bytes()[:size])
    with pytest.raises(errors.CheckpointError, match=r"short.h5 cannot be read .* `graftwork transfer fit`"):
        ImageClassifier.load(path)


def test_missing_and_foreign_files(tmp_path, saved):
    with pytest.raises(errors.CheckpointError, match="no file at"):
        ImageClassifier.load(tmp_path / "none.h5")
    nn.checkpoint.save(tmp_path / "run.h5", {"model": {}}, {"epoch": 1})
    with pytest.raises(errors.WeightsError, match="not a saved image classifier"):
        ImageClassifier.load(tmp_path / "run.h5")
    unknown = damaged(saved, tmp_path, lambda f: f.attrs.__setitem__("info", f.attrs["info"].replace("glyphnet", "glyfnet")))
    with pytest.raises(errors.ModelNotFound, match="did you mean glyphnet"):
        ImageClassifier.load(unknown)


def test_features_of_another_width(saved):
    with pytest.raises(errors.DataError, match=r"features \(2, 5\) for a classifier of 192"):
        saved[0].decision(np.zeros((2, 5)))


def test_a_save_that_fails_leaves_nothing(saved, tmp_path, monkeypatch):
    with pytest.raises(errors.DataError, match="does not exist; create it first"):
        saved[0].save(tmp_path / "no" / "c.h5")
    with pytest.raises(errors.DataError, match="it is a folder"):
        saved[0].save(tmp_path)

    def disk_full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", disk_full)
    with pytest.raises(OSError, match="No space left"):
        saved[0].save(tmp_path / "c.h5")
    assert list(tmp_path.iterdir()) == []


def test_without_scikit_learn_one_sentence(trunk, features, digits, monkeypatch):
    monkeypatch.setattr("graftwork.plugins.transfer.find_spec", lambda name: None)
    calls = [
        lambda: ImageClassifier(trunk, "glyphnet").fit([], []),
        lambda: ImageClassifier(trunk, "glyphnet").fit_features(features, digits[1]),
        lambda: similar(features, features), lambda: cluster(features, 2),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(errors.MissingDependency, match=r"pip install 'graftwork\[transfer\]'"):
            call()


# Similar images and clusters


def test_similar_images_are_of_the_same_digit(features, digits):
    indices, distances = similar(features, features, k=4)
    np.testing.assert_array_equal(indices[:, 0], np.arange(72))  # each is nearest to itself
    np.testing.assert_allclose(distances[:, 0], 0, atol=1e-5)  # 1 - a cosine of float32 vectors
    assert (np.diff(distances, axis=1) >= 0).all()
    assert (digits[1][indices[:, 1:]] == digits[1][:, None]).mean() > 0.9
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(distances, np.sort(1 - unit @ unit.T, axis=1)[:, :4], atol=1e-5)


def test_clusters_are_the_digits(features, digits):
    numbers = cluster(features, 3)
    np.testing.assert_array_equal(numbers, cluster(features, 3))  # a seed of its own
    assert sum(np.bincount(digits[1][numbers == c]).max() for c in range(3)) / 72 > 0.85


@pytest.mark.parametrize("k", [0, 73])
def test_impossible_counts(features, k):
    with pytest.raises(errors.DataError, match=f"k={k} neighbours of 72 images; expected 1 to 72"):
        similar(features, features[:1], k=k)
    with pytest.raises(errors.DataError, match=f"{k} clusters of 72 images; expected 1 to 72"):
        cluster(features, k)
