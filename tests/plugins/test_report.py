"""The page about a classifier: what stands in it, that it needs nothing else, and that a browser shows it."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graftwork import zoo
from graftwork.errors import DataError, ModelError, ShapeError
from graftwork.plugins.transfer import ImageClassifier
from graftwork.plugins.transfer.report.classifier import Extras, plane, report
from graftwork.plugins.transfer.report.parts import confusion_table, feature_map, line_chart
from graftwork.plugins.transfer.saliency import grad_cam, overlay

pytest.importorskip("sklearn")
NAMES = ["one", "four", "seven & <more>"]
EACH = 16


def digits(start, each):
    """uint8 pictures of 1, 4 and 7, and class numbers."""
    from sklearn.datasets import load_digits

    data = load_digits()
    places = np.concatenate([np.flatnonzero(data.target == c)[start : start + each] for c in (1, 4, 7)])
    return list(np.round(data.images[places] * (255 / 16)).astype(np.uint8)[..., None]), np.repeat(np.arange(3), each)


@pytest.fixture(scope="module")
def classifier():
    pictures, labels = digits(100, 2)
    trunk = zoo.create("glyphnet", weights="glyphs", include_top=False)
    return ImageClassifier(trunk, "glyphnet", C=0.1).fit(pictures, labels, NAMES)


@pytest.fixture(scope="module")
def page(classifier, tmp_path_factory):
    """What was measured, and the file. Two labels are wrong on purpose, so that there are mistakes to show."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    pictures, labels = digits(0, EACH)
    labels[[0, -1]] = [1, 0]
    curve = [{"labels": n, "accuracy": a, "deviation": 0.1, "draws": 3} for n, a in ((1, 0.6), (5, 0.9))]
    return report(path, classifier, pictures, labels, "Digits & <more>", Extras(curve=curve)), path


class Elements(HTMLParser):
    """All tags with their attributes, and whether every one was closed in turn."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [a for t, a in self.found if t == tag]


def test_the_page_is_whole_and_needs_no_network(page):
    text = page[1].read_text(encoding="utf-8")
    elements = Elements(text)
    assert not elements.open and [p.name for p in page[1].parent.iterdir()] == ["report.html"]
    assert not {t for t, _ in elements.found} & {"script", "link", "iframe", "object", "base"}
    links = [a[k] for _, a in elements.found for k in ("src", "href") if k in a]
    assert links and all(value.startswith(("data:image/", "#")) for value in links)
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)  # in which any four letters may stand
    assert "http" not in text and "url(" not in text and "@import" not in text


def test_the_page_is_accessible(page):
    """Texts in place of pictures, headings of tables, a language, links that lead somewhere, ids that are unique."""
    elements = Elements(page[1].read_text(encoding="utf-8"))
    assert elements.all("html")[0]["lang"] == "en" and len(elements.all("main")) == len(elements.all("h1")) == 1
    assert elements.all("img") and all(a["alt"] for a in elements.all("img"))
    assert elements.all("svg") and all(a["role"] == "img" and a["aria-label"] for a in elements.all("svg"))
    assert all(a.get("scope") in ("row", "col") for a in elements.all("th")) and elements.all("th")
    ids = [a["id"] for _, a in elements.found if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in elements.all("a")} <= set(ids) and len(elements.all("a")) > 6


def luminance(colour):
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_of_text_in_light_and_dark(page):
    """At least 4.5 to 1 (WCAG 2.1, AA) for every colour that text has, on both grounds."""
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in page[1].read_text("utf-8").split("@media (prefers")[:2]]
    assert len(schemes) == 2 and schemes[0]["paper"] != schemes[1]["paper"]
    for scheme in schemes:
        for ground in ("paper", "card"):
            for ink in ("ink", "soft", "leaf", "wrong"):
                low, high = sorted(luminance(scheme[c]) for c in (ground, ink))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ground, ink, scheme)


def test_the_figures_are_those_measured(page):
    found, path = page
    text = path.read_text(encoding="utf-8")
    low, high = found.interval
    assert 0.7 < found.accuracy < 1 and f"{found.accuracy:.1%}" in text and f"95 %: {low:.1%} to {high:.1%}" in text
    assert "<h1>Digits &amp; &lt;more&gt;</h1>" in text and "seven &amp; &lt;more&gt;" in text and "<more>" not in text
    titles = re.findall(r"<h2[^>]*>([^<]*)</h2>", text)
    assert titles == [
        "In figures", "Class by class", "What is taken for what", "Most confident mistakes", "What it looks at",
        "Similar pictures", "A map of the features", "Curves", "Sizes and times",
    ]  # fmt: skip
    assert text.count("<image ") == 3 * EACH and "labels per class" in text


def browser():
    """A Chromium that starts without a screen, or a skip."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on the path; install it to have the page looked at in a browser")


def test_a_browser_shows_it(page, tmp_path):
    """A screenshot at two widths: pictures are there, and nothing is wider than a telephone's screen. GRAFTWORK_KEEP names a
    folder that keeps the pictures."""
    keep = Path(os.environ.get("GRAFTWORK_KEEP", tmp_path))
    keep.mkdir(parents=True, exist_ok=True)
    common = [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    common.append(f"--user-data-dir={tmp_path / 'profile'}")
    for width in (1100, 500):
        shot = keep / f"report-{width}.png"
        done = subprocess.run([*common, f"--window-size={width},5000", f"--screenshot={shot}", page[1].as_uri()],
                              capture_output=True, timeout=240)  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        pixels = np.asarray(Image.open(shot).convert("L"))
        assert pixels.shape[1] == width and pixels.std() > 10
        assert pixels[:, -4:].std() < 2, "something runs out of the page at the right"  # the margin is one colour


# Grad-CAM


def test_grad_cam_of_a_linear_head_is_the_weighted_map(classifier):
    """For average pooling and a linear model the gradient is known: weights by channel over positions."""
    pictures, _ = digits(0, 2)
    heat, pixels = grad_cam(classifier, pictures, [0, 1, 2, 0, 1, 2], batch_size=4)
    assert heat.shape == (6, 32, 32) and pixels.shape == (6, 32, 32, 1) and heat.min() >= 0 and heat.max() <= 1
    trunk = classifier.model
    activation = trunk.trunk(trunk.preprocess(pictures)).numpy()
    expected = np.maximum(activation[1] @ (classifier.weight[1] / classifier.scale), 0)
    expected = Image.fromarray((expected / expected.max()).astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(heat[1], np.asarray(expected), atol=1e-4)  # float32 sums over 192 channels


def test_overlay_keeps_what_counts():
    pixels = np.full((4, 4, 3), (200, 100, 0), np.uint8)
    np.testing.assert_array_equal(overlay(pixels, np.ones((4, 4))), pixels)
    assert overlay(pixels, np.zeros((4, 4)))[0, 0].tolist() == [35, 35, 35]


def test_grad_cam_refuses(classifier):
    with pytest.raises(ShapeError, match="2 classes for 3 pictures"):
        grad_cam(classifier, digits(0, 1)[0], [0, 1])
    with pytest.raises(ModelError, match="has no linear model on top"):
        grad_cam(ImageClassifier(classifier.model, "glyphnet"), digits(0, 1)[0])


# Parts


def test_names_are_escaped_everywhere():
    evil = '<img src=x onerror="1">'
    parts = [
        confusion_table(np.eye(2, dtype=int), [evil, "b"]), line_chart({evil: [(1, 0.5), (2, 0.7)]}, evil, evil),
        feature_map(np.eye(2), [np.zeros((4, 4, 3), np.uint8)] * 2, [evil, "b"]),
    ]  # fmt: skip
    for part in parts:
        assert evil not in part and html.escape(evil) in part


def test_layout_of_few_features(rng):
    assert plane(rng.normal(size=(1, 5)))[1] == "a point"
    places, method = plane(rng.normal(size=(5, 8)))
    assert places.shape == (5, 2) and method == "PCA"


def test_what_a_report_refuses(classifier, tmp_path):
    with pytest.raises(DataError, match="2 pictures with 1 labels"):
        report(tmp_path / "x.html", classifier, digits(0, 1)[0][:2], [0])
    with pytest.raises(DataError, match="does not exist"):
        report(tmp_path / "no" / "x.html", classifier, digits(0, 1)[0], [0, 1, 2])
    assert list(tmp_path.iterdir()) == []


# The commands


def test_the_commands_from_a_folder_to_a_page(tmp_path):
    from click.testing import CliRunner

    from graftwork.cli import main

    for start, each, part in ((0, 4, "train"), (20, 3, "validation")):
        for i, (pixels, label) in enumerate(zip(*digits(start, each), strict=True)):
            folder = tmp_path / "photos" / part / "abc"[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[:, :, 0]).save(folder / f"{i}.png")
    photos, model, page = tmp_path / "photos", tmp_path / "m.h5", tmp_path / "r.html"

    def said(*words):
        result = CliRunner().invoke(main, ["transfer", *map(str, words), "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    network = ("--model", "glyphnet")
    assert said("advise", photos, *network)["strategy"] == "features"
    fitted = said("fit", photos, *network, "--strategy", "auto", "-o", model)
    assert fitted["advice"]["quadrant"].startswith("less data") and fitted["validation"]["images"] == 9
    assert said("evaluate", model, photos / "validation")["accuracy"] == fitted["validation"]["accuracy"]
    assert said("report", model, photos / "validation", "-o", page)["images"] == 9 and page.stat().st_size > 10_000
    clusters = said("cluster", photos / "train", *network, "-k", 3)["clusters"]
    assert sum(map(len, clusters.values())) == 12
    tuned = said("tune", photos, *network, "-C", 0.1, "-C", 0.01, "--layer", "fire3", "--folds", 2)
    assert len(tuned["rows"]) == 4 and tuned["test_images"] == 3
