"""Compression: clustering and rounding, the search for what a budget allows, both files, the command, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import graftwork as gw
from graftwork import errors, nn, zoo
from graftwork.cli import main
from graftwork.nn import packing
from graftwork.nn.modules.module import assign
from graftwork.plugins.compress import Data, Step, Subject, cluster, compress, kmeans, load_subject, round_to_bytes
from graftwork.plugins.compress.commands import parse_budget
from graftwork.plugins.prune import MagnitudePruner, prune_channels
from graftwork.plugins.quantize import quantize
from graftwork.plugins.transfer import FineTuned, ImageClassifier, Recipe
from graftwork.plugins.transfer.finetune import WithHead


def test_kmeans_finds_separate_heaps_and_never_gets_worse():
    rng = np.random.default_rng(0)
    heaps = np.concatenate([rng.normal(m, 0.01, 50) for m in (-1, 0.2, 3)])
    centroids, codes = kmeans(heaps, 3)
    assert np.allclose(centroids, [-1, 0.2, 3], atol=0.01) and np.array_equal(codes, np.repeat([0, 1, 2], 50))
    values = rng.standard_normal(3000)
    errors_ = []
    for size in (2, 4, 16, 64, 256):
        centroids, codes = kmeans(values, size)
        nearest = np.abs(values[:, None] - centroids).min(axis=1)
        assert len(centroids) <= size and np.allclose(np.abs(values - centroids[codes]), nearest, rtol=0, atol=1e-12)
        errors_.append(np.abs(values - centroids[codes]).mean())
    assert errors_ == sorted(errors_, reverse=True)
    # what the best quantiser of two levels leaves of a normal distribution's deviation (Max 1960)
    centroids, codes = kmeans(values, 2)
    assert np.std(values - centroids[codes]) == pytest.approx(np.sqrt(1 - 2 / np.pi), rel=0.03)


@pytest.fixture
def layer():
    gw.manual_seed(0)
    return nn.Sequential(nn.Conv2d(16, 32, 3))


def form(model):
    return packing.entries(packing.pack(model.state_dict()))["0.weight"].stored_dtype


def test_clustered_and_rounded_weights_are_stored_as_such_and_zeros_stay(layer):
    bias = layer[0].bias.numpy().copy()
    MagnitudePruner(layer, 0.6)
    zeros = layer[0].weight.numpy() == 0
    found = cluster(layer, 16)
    weight = layer[0].weight.numpy()
    assert len(np.unique(weight[~zeros])) <= 16 and np.array_equal(weight == 0, zeros)
    assert found["0.weight"] < 0.2 and form(layer) == "sparse codebook"
    assert np.array_equal(layer[0].bias.numpy(), bias)
    assert np.abs(weight).max(axis=(0, 1, 2)).min() > 0


def test_rounding_is_within_half_a_level_and_exact_a_second_time(layer):
    before = layer[0].weight.numpy().copy()
    found = round_to_bytes(layer)
    after = layer[0].weight.numpy()
    level = np.abs(before).max(axis=(0, 1, 2)) / 127
    assert (np.abs(after - before) <= 0.5001 * level).all() and found["0.weight"] < 0.02 and form(layer) == "int8"
    assert round_to_bytes(layer)["0.weight"] < 1e-6


def test_rounding_refuses(layer):
    with pytest.raises(errors.ConfigError, match="size=300; expected 2 to 256"):
        cluster(layer, 300)
    assign(layer[0].weight, np.full(layer[0].weight.shape, np.nan))
    with pytest.raises(errors.ConfigError, match=r"0\.weight holds NaN"):
        round_to_bytes(layer)


# -- the whole way -------------------------------------------------------------------------------------------------------


def striped(count, seed=0):
    """Grey pictures with stripes across or along, as arrays, and 0 or 1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    wave = (np.sin(np.arange(32) * 1.2) > 0) * 160
    pictures = [np.broadcast_to(wave[:, None] if k else wave, (32, 32)) + rng.integers(0, 90, (32, 32)) for k in labels]
    return [p.astype(np.uint8)[..., None] for p in pictures], labels


@pytest.fixture
def classifier():
    pytest.importorskip("sklearn")
    trunk = zoo.create("glyphnet", weights="glyphs", include_top=False, pooling="avg")
    return ImageClassifier(trunk, "glyphnet", C=0.1).fit(*striped(16), ["along", "across"])


LADDER = (Step(0.0, None), Step(0.5, 16), Step(0.97, 2))  # the last one ruins any network that is not fitted anew


def test_a_classifier_within_its_budget(classifier, tmp_path):
    pictures, labels = striped(24, 1)
    learn, learn_labels = striped(16)
    found = compress(Subject(classifier), Data(pictures, labels, learn, learn_labels), 0.0, tmp_path / "small.h5",
                     tmp_path / "graph.h5", LADDER)  # fmt: skip
    before, stored, graph = (found.forms[name] for name in ("before", "stored", "graph"))
    assert before["accuracy"] == 1.0 and stored["points_lost"] <= 0 and found.met and found.refitted
    assert stored["bytes"] == (tmp_path / "small.h5").stat().st_size < 0.5 * before["bytes"]
    assert graph["bytes"] == (tmp_path / "graph.h5").stat().st_size < 0.5 * before["bytes"]
    assert graph["memory"] < before["memory"] and set(before["latency_ms"]) == {"1", "32"}
    assert json.loads(json.dumps(found.to_dict()))["met"] is True
    again = ImageClassifier.load(tmp_path / "small.h5")  # what was measured is what was stored
    assert again.score(pictures, labels) == stored["accuracy"]
    np.testing.assert_allclose(again.predict_proba(pictures), classifier.predict_proba(pictures), atol=1e-5)
    run = gw.load_graph(tmp_path / "graph.h5")  # no model code
    assert found.quantised is not None and any(row["refitted"] for row in found.tried)
    scores = [run(again.model.normalise(p[None])).numpy()[0] for p in pictures]
    assert (np.argmax(scores, axis=1) == labels).mean() == graph["accuracy"]
    errors_ = {row["weight"]: row for row in found.layers}
    assert set(errors_) == {n for n, p in again.model.named_parameters() if p.ndim >= 2}
    assert all(0 < row["weight_error"] < 1 and row["output_error"] > 0 for row in errors_.values())


@pytest.mark.parametrize("packed", [False, True])
def test_a_quantised_network_runs_from_its_file_alone(tmp_path, packed):
    model = zoo.create("glyphnet", weights="glyphs")
    x = np.random.default_rng(0).random((4, *model.input_shape), np.float32)
    small = quantize(model, [x])
    small.graph(gw.tensor(x)).save(tmp_path / "graph.h5", packed=packed)
    zoo.save_weights(model, tmp_path / "float32.h5")
    assert np.array_equal(gw.load_graph(tmp_path / "graph.h5")(gw.tensor(x)).numpy(), small(gw.tensor(x)).numpy())
    assert (tmp_path / "graph.h5").stat().st_size < 0.27 * (tmp_path / "float32.h5").stat().st_size


def test_channels_may_go_first(classifier, tmp_path):
    (pictures, labels), learn = striped(12, 1), striped(16)
    before = classifier.model.count_parameters()
    found = compress(Subject(classifier), Data(pictures, labels, *learn), 0.0, tmp_path / "s.h5", ladder=LADDER[:1], macs=0.6)
    assert found.met and found.channels["macs"][1] <= 0.6 * found.channels["macs"][0]
    again = ImageClassifier.load(tmp_path / "s.h5")
    assert again.score(pictures, labels) == 1.0 and again.model.count_parameters() < before
    assert any(row["output_error"] is None for row in found.layers) and found.layers[-1]["output_error"] > 0


def test_a_budget_out_of_reach_says_by_how_much(classifier, tmp_path):
    pictures, labels = striped(24, 1)
    found = compress(Subject(classifier), Data(pictures, labels), 0.0, tmp_path / "small.h5", ladder=LADDER[2:])
    assert found.forms["stored"]["accuracy"] < 1 and not found.met and not found.refitted
    assert found.missed["stored"] == found.forms["stored"]["points_lost"] > 0


def test_a_pruned_classifier_is_stored_with_its_own_shapes(classifier, tmp_path):
    pictures, _ = striped(12, 1)
    small = prune_channels(classifier.model, classifier.model.normalise(pictures[0][None]), amount=0.2).model
    refitted = ImageClassifier(small, "glyphnet", C=0.1).fit(*striped(16), ["along", "across"])
    for packed in (False, True):
        refitted.save(tmp_path / "c.h5", packed=packed)
        again = ImageClassifier.load(tmp_path / "c.h5")
        assert again.model.count_parameters() < classifier.model.count_parameters()
        np.testing.assert_allclose(again.predict_proba(pictures), refitted.predict_proba(pictures), atol=1e-5)


def test_a_fine_tuned_network_with_pruned_channels(classifier, tmp_path):
    pictures, labels = striped(12, 1)
    learn = striped(16)
    trunk = prune_channels(classifier.model, classifier.model.normalise(np.stack(learn[0])), amount=0.1, reconstruct=True).model
    top = ImageClassifier(trunk, "glyphnet", C=0.1).fit(*learn, ["along", "across"])
    network = WithHead(trunk, len(top.mean), 2)
    for tensor, value in ((network.mean, top.mean), (network.scale, 1 / top.scale), (network.head.weight, top.weight.T),
                          (network.head.bias, top.bias)):  # fmt: skip
        assign(tensor, value)
    tuned = FineTuned(network.eval(), top.classes, Recipe(augment=None), "glyphnet")
    assert tuned.score(pictures, labels) == 1.0
    found = compress(Subject(tuned), Data(pictures, labels, *learn), 0.0, tmp_path / "small.h5", ladder=LADDER[:2])
    assert found.met and not found.refitted and found.forms["graph"]["accuracy"] == 1.0
    again = FineTuned.load(tmp_path / "small.h5")
    assert again.model.trunk.count_parameters() == trunk.count_parameters() < classifier.model.count_parameters()
    np.testing.assert_array_equal(again.logits(pictures), tuned.logits(pictures))


@pytest.fixture
def folder(tmp_path):
    """Pictures of noise below the names that GlyphNet itself gives them."""
    model = zoo.create("glyphnet", weights="glyphs")
    rng = np.random.default_rng(3)
    pictures = rng.integers(0, 256, (40, 32, 32, 1)).astype(np.uint8) // np.arange(1, 41)[:, None, None, None].astype(np.uint8)
    for i, k in enumerate(model.predict(list(pictures)).argmax(axis=1)):
        path = tmp_path / "data" / str(model.labels[k]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[i, :, :, 0]).save(path)
    return tmp_path / "data"


def run(*arguments):
    return CliRunner().invoke(main, ["compress", *map(str, arguments)], env={"COLUMNS": "200"})


def test_the_command_on_a_network_of_the_zoo(folder, tmp_path):
    out, graph, page = (tmp_path / n for n in ("small.h5", "graph.h5", "page.html"))
    result = run("glyphnet", "--data", folder, "--budget", "20pt", "-o", out, "--graph", graph, "--html", page)
    assert result.exit_code == 0, result.output
    assert "file, bytes" in result.stdout and "95 % interval" in result.stdout and "budget of 20 points" in result.stdout
    text = page.read_text()
    assert text.startswith("<!doctype html>") and "Layer by layer" in text and "stored file" in text
    assert zoo.load(out).labels == zoo.create("glyphnet", weights="glyphs").labels
    assert isinstance(zoo.load(graph), nn.graph_file.LoadedGraph)
    again = run(out, "--data", folder, "--budget", "100", "-o", tmp_path / "again.h5", "--macs", "0.8", "--json")
    found = json.loads(again.stdout)
    assert zoo.load(tmp_path / "again.h5").count_parameters() < zoo.load(out).count_parameters()
    assert 0.7 < found["channels"]["macs"][1] / found["channels"]["macs"][0] <= 0.8
    assert found["met"] and found["budget"] == 100 and set(found["forms"]) == {"before", "stored", "graph"}


@pytest.mark.parametrize("text, points", [("0.5pt", 0.5), ("1 point", 1.0), (".25", 0.25), ("2pts", 2.0)])
def test_budgets(text, points):
    assert parse_budget(text) == points


def test_refusals(folder, tmp_path):
    for arguments, message in [
        (("glyphnet", "--budget", "a bit"), "expected points of accuracy"),
        (("nobody",), "neither a file nor a network"),
        (("squeezenet1_1",), "no weights for squeezenet1_1 ship"),
    ]:
        result = run(*arguments, "--data", folder, "-o", tmp_path / "x.h5")
        assert result.exit_code == 1 and message in result.stderr, result.output
    with pytest.raises(errors.ModelError, match="which classes its outputs are"):
        Subject(zoo.create("glyphnet"))
    with pytest.raises(errors.ModelError, match="neither a classifier"):
        Subject(nn.Sequential(nn.Linear(2, 2)))
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(errors.DataError, match="no HDF5 file"):
        load_subject(tmp_path / "text.h5")
    subject = Subject(zoo.create("glyphnet", weights="glyphs"))
    with pytest.raises(errors.ConfigError, match="budget=-1"):
        compress(subject, Data([np.zeros((32, 32, 1), np.uint8)], np.zeros(1, int)), -1, tmp_path / "x.h5")
    with pytest.raises(errors.DataError, match="0 pictures"):
        compress(subject, Data([], np.zeros(0, int)), 1, tmp_path / "x.h5")
