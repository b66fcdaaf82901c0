"""Classifiers and taggers of pictures with any head, their files, and folders with what goes wrong in them."""

from __future__ import annotations

import os
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

import graftwork as gw
from graftwork import errors, zoo
from graftwork.plugins.transfer import ImageClassifier, Tagger, heads, load_folder
from graftwork.plugins.transfer.folders import FolderWarning

pytest.importorskip("sklearn")
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Perceptron, RidgeClassifier, SGDClassifier
from sklearn.naive_bayes import BernoulliNB, GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

HEADS = [
    LogisticRegression(), RidgeClassifier(), SGDClassifier(loss="log_loss", random_state=0), Perceptron(random_state=0),
    LinearSVC(), LinearDiscriminantAnalysis(), GaussianNB(), BernoulliNB(), MultinomialNB(),
    KNeighborsClassifier(3, weights="distance"), MLPClassifier((4,), max_iter=10, random_state=0),
    make_pipeline(StandardScaler(), LogisticRegression()), make_pipeline(MinMaxScaler(), Normalizer(), KNeighborsClassifier(2)),
]  # fmt: skip


@pytest.fixture(scope="module")
def resnet():
    gw.manual_seed(0)
    return zoo.create("resnet20", include_top=False)


@pytest.fixture(scope="module")
def glyphnet():
    return zoo.create("glyphnet", weights="glyphs", include_top=False)


def coloured(count=16):
    """Small pictures: red ones and blue ones in turn, as arrays, and 0 or 1."""
    rng = np.random.default_rng(1)
    labels = np.arange(count) % 2
    pictures = rng.integers(0, 90, (count, 20, 20, 3)).astype(np.uint8)
    pictures[np.arange(count), :, :, np.where(labels, 2, 0)] += 150
    return list(pictures), labels


@pytest.fixture
def folder(tmp_path):
    """Red and blue PNG files below folders that are named so."""
    for i, (pixels, label) in enumerate(zip(*coloured(), strict=True)):
        path = tmp_path / "data" / ("rot", "blau")[label] / f"bild é{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "data"


# Heads


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("head", HEADS, ids=lambda h: type(h).__name__)
@pytest.mark.parametrize("classes", [2, 3])
def test_heads_come_back_from_arrays_as_they_were(rng, head, classes):
    from sklearn.base import clone

    rows, labels = rng.random((40, 5)), np.arange(40) % classes
    fitted = clone(head).fit(rows, labels)
    settings, arrays = heads.pack(fitted)
    assert all(a.dtype.kind in "fi" for a in arrays.values())
    again = heads.unpack(settings, arrays)
    np.testing.assert_array_equal(again.predict(rows), fitted.predict(rows))
    if hasattr(fitted, "predict_proba"):
        np.testing.assert_array_equal(again.predict_proba(rows), fitted.predict_proba(rows))


def test_heads_that_cannot_be_saved_say_so(rng):
    rows, labels = rng.random((12, 3)), np.arange(12) % 2
    with pytest.raises(errors.ConfigError, match="a fitted SVC cannot be saved; those that can: LogisticRegression"):
        heads.pack(SVC().fit(rows, labels))
    with pytest.raises(errors.ConfigError, match=r"class_weight=\{0: 1.0, 1: 2.0\}\) cannot be saved"):
        heads.pack(LogisticRegression(class_weight={0: 1.0, 1: 2.0}).fit(rows, labels))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s, a: s.update({"class": "os.system"}), "'os.system' is unknown"),
        (lambda s, a: s["params"].update({"depth": 3}), "damaged"),
        (lambda s, a: a.pop("coef_"), "damaged .'coef_'"),
        (lambda s, a: a.update(coef_=np.array([b"x"])), "expected numbers"),
        (lambda s, a: s["scalars"].update({"predict": 1}), "predict; expected numbers"),
        (lambda s, a: s.pop("width"), "damaged"),
    ],
)
def test_settings_that_no_model_has(rng, change, words):
    settings, arrays = heads.pack(LogisticRegression().fit(rng.random((12, 3)), np.arange(12) % 2))
    change(settings, arrays)
    with pytest.raises(errors.WeightsError, match=words):
        heads.unpack(settings, arrays)


# Classifiers


def test_another_network_and_another_head_through_a_file(resnet, tmp_path):
    pictures, labels = coloured()
    classifier = ImageClassifier(resnet, "resnet20", estimator=KNeighborsClassifier(1), cache=tmp_path / "kept")
    classifier.fit(pictures, [("red", "blue")[n] for n in labels])
    assert classifier.classes == ["blue", "red"]
    assert classifier.score(pictures, 1 - labels) == 1.0 and classifier.score(pictures[:1], ["red"]) == 1.0
    classifier.save(tmp_path / "c.h5")
    loaded = ImageClassifier.load(tmp_path / "c.h5")
    np.testing.assert_array_equal(loaded.predict_proba(pictures), classifier.predict_proba(pictures))
    with pytest.raises(errors.DataError, match="labels green were not in the training; it had blue, red"):
        loaded.score(pictures[:1], ["green"])
    with pytest.raises(errors.DataError, match="labels 2 were not in the training"):
        loaded.score(pictures[:2], [0, 2])


def test_a_head_without_probabilities_and_one_that_cannot_be_saved(resnet, tmp_path):
    pictures, labels = coloured()
    ridge = ImageClassifier(resnet, "resnet20", estimator=RidgeClassifier()).fit(pictures, labels)
    assert ridge.predict(pictures).tolist() == labels.tolist()
    with pytest.raises(errors.ConfigError, match="RidgeClassifier gives no probabilities"):
        ridge.predict_proba(pictures)
    machine = ImageClassifier(resnet, "resnet20", estimator=SVC()).fit(pictures, labels)
    with pytest.raises(errors.ConfigError, match="a fitted SVC cannot be saved"):
        machine.save(tmp_path / "never.h5")
    assert not (tmp_path / "never.h5").exists()


def test_classifiers_are_cloned_and_searched(resnet):
    from sklearn.base import clone, is_classifier
    from sklearn.model_selection import GridSearchCV

    classifier = ImageClassifier(resnet, "resnet20", estimator=KNeighborsClassifier(1))
    assert is_classifier(classifier)
    twin = clone(classifier)
    assert twin.model is resnet and twin.estimator is not classifier.estimator
    assert twin.get_params()["estimator__n_neighbors"] == 1
    search = GridSearchCV(classifier, {"estimator__n_neighbors": [1, 3]}, cv=2).fit(*coloured())
    assert search.best_score_ == 1.0


@pytest.mark.parametrize(
    "options, words",
    [
        ({"estimator": 5}, "estimator=5; expected a scikit-learn"),
        ({"C": 1.0, "estimator": GaussianNB()}, "set it on the estimator"),
    ],
)
def test_classifier_options_that_make_no_sense(resnet, options, words):
    with pytest.raises(errors.ConfigError, match=words):
        ImageClassifier(resnet, "resnet20", **options)


def test_one_class_is_refused_before_the_network_works(resnet):
    with pytest.raises(errors.DataError, match="labels of 1 classes"):
        ImageClassifier(resnet, "resnet20").fit(["no-such.png"], ["cat"])


def test_a_file_of_a_newer_version(glyphnet, rng, tmp_path):
    path = tmp_path / "new.h5"
    ImageClassifier(glyphnet, "glyphnet", C=1.0).fit_features(rng.random((8, 192)), np.arange(8) % 2).save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["info"] = file.attrs["info"].replace('"format": 2', '"format": 3')
    with pytest.raises(errors.CheckpointError, match="new.h5 has format 3 .* reads up to 2; upgrade graftwork"):
        ImageClassifier.load(path)


# Tags


def test_tags_of_pictures_and_their_file(resnet, tmp_path):
    pictures, labels = coloured()
    tags = [["small", "blue"] if n else ["small"] for n in labels]
    tags[0] = []
    tagger = Tagger(resnet, "resnet20", cache=tmp_path / "kept").fit(pictures, tags)
    assert tagger.classes == ["blue", "small"]
    found = tagger.predict(pictures)
    assert sum(("blue" in f) == bool(n) for f, n in zip(found, labels, strict=True)) >= 15
    tagger.save(tmp_path / "tags.h5")
    loaded = Tagger.load(tmp_path / "tags.h5")
    np.testing.assert_array_equal(loaded.predict_proba(pictures), tagger.predict_proba(pictures))
    with pytest.raises(errors.WeightsError, match="not a saved image classifier"):
        ImageClassifier.load(tmp_path / "tags.h5")


@pytest.mark.parametrize(
    "tags, classes, words",
    [
        (["red", "blue"], None, "the tags of an image are 'red'; expected a list"),
        ([["a"], ["b"]], ["a"], "tags b are not among a"),
        ([[], []], None, "no image has any tag"),
        ([["a"]], None, "2 images with the tags of 1"),
    ],
)
def test_tags_that_do_not_fit(resnet, tags, classes, words):
    with pytest.raises(errors.DataError, match=words):
        Tagger(resnet, "resnet20").fit_features(np.zeros((2, 64)), tags, classes)
    with pytest.raises(errors.DataError, match="learned nothing yet"):
        Tagger(resnet, "resnet20").predict([])


# Folders


def test_a_sound_folder(folder):
    found = load_folder(folder)
    assert found.classes == ["blau", "rot"] and len(found) == 16 and len(set(found.groups.tolist())) == 16
    assert [p.parent.name for p in found.paths] == [found.classes[n] for n in found.labels]
    assert found.unreadable == {} and found.duplicates() == []


def test_duplicates_share_a_group_and_are_warned_of(folder, tmp_path):
    rot = sorted((folder / "rot").iterdir())
    shutil.copy(rot[0], folder / "rot" / "kopie.png")
    test = tmp_path / "test"
    shutil.copytree(folder, test)
    shutil.copy(rot[1], folder / "blau" / "wrong.png")
    with pytest.warns(FolderWarning, match="the same picture, once as blau and once as rot"):
        found = load_folder(folder)
    groups = dict(zip([p.name for p in found.paths], found.groups.tolist(), strict=True))
    assert groups["kopie.png"] == groups[rot[0].name] and len(found.duplicates()) == 2
    (test / "rot" / "kopie.png").unlink()
    for i, path in enumerate(sorted(test.rglob("*.png"))):
        if path.name != rot[0].name:
            Image.new("RGB", (9, 9), (i, 7, 7)).save(path)
    with pytest.warns(FolderWarning, match="2 pictures are in both parts"):
        pairs = found.shared_with(load_folder(test))
    assert [(a.name, b.name) for a, b in pairs] == [(rot[0].name, rot[0].name), ("kopie.png", rot[0].name)]


def test_unreadable_files_are_listed_and_left_out(folder):
    first, second = sorted((folder / "rot").iterdir())[:2]
    first.write_bytes(first.read_bytes()[:200])
    Image.new("RGB", (64, 64), "red").save(second.with_suffix(".jpg"), quality=95)
    cut = second.with_suffix(".jpg")
    cut.write_bytes(cut.read_bytes()[:-200])
    os.symlink("nowhere.png", folder / "rot" / "dangling.png")
    with pytest.warns(FolderWarning, match="2 of 17 files .* are left out"):
        found = load_folder(folder)
    assert set(found.unreadable) == {first, cut} and len(found) == 15
    for path in (folder / "rot").iterdir():
        if not path.is_symlink():
            path.write_bytes(b"")
    with pytest.raises(errors.DataError, match="no readable picture in rot"):
        load_folder(folder)


def test_links_in_loops_end(folder):
    os.symlink(folder, folder / "rot" / "loop", target_is_directory=True)
    os.symlink(folder / "rot" / "self.png", folder / "rot" / "self.png")
    assert len(load_folder(folder)) == 16
    os.symlink(folder, folder / "again", target_is_directory=True)
    with pytest.raises(errors.DataError, match="again is a link to .* which holds it"):
        load_folder(folder)


def test_empty_classes_one_class_and_classes_never_seen(folder):
    with pytest.raises(errors.DataError, match="classes that were not in the training: rot; it had blau, gelb"):
        load_folder(folder, classes=["blau", "gelb"])
    assert load_folder(folder, classes=["gelb", "rot", "blau"]).labels.tolist() == [2] * 8 + [1] * 8
    (folder / "leer").mkdir()
    with pytest.raises(errors.DataError, match="no images in leer; add some or remove the folder"):
        load_folder(folder)
    shutil.rmtree(folder / "leer")
    shutil.rmtree(folder / "rot")
    with pytest.raises(errors.DataError, match="1 sub-folders with images; expected at least two"):
        load_folder(folder)
    with pytest.raises(errors.DataError, match="is not a folder"):
        load_folder(folder / "none")
