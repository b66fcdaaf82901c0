"""Graphs in files: what comes back computes the same; damaged and foreign files are a clear error."""

import contextlib
import json

import h5py
import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, nn, zoo
from graftwork.nn import functional as F


@pytest.fixture
def model():
    gw.manual_seed(2)
    layers = nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm(4), nn.ReLU(), nn.GlobalAvgPool2d(), nn.Linear(4, 2)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def x(rng):
    return gw.tensor(rng.random((2, 8, 8, 3), np.float32))


@pytest.fixture
def saved(model, x, tmp_path):
    with gw.no_grad():
        gw.compile(model).graph(x).save(tmp_path / "g.h5")
    return tmp_path / "g.h5"


def test_round_trip(model, x, saved):
    loaded = gw.load_graph(saved)
    with gw.no_grad():
        np.testing.assert_array_equal(loaded(x).numpy(), gw.compile(model)(x).numpy())
    assert "float32[2, 8, 8, 3]" in repr(loaded)


def test_a_loaded_graph_is_saved_again(saved, x, tmp_path):
    first = gw.load_graph(saved)
    first.graph.save(tmp_path / "again.h5")
    np.testing.assert_array_equal(gw.load_graph(tmp_path / "again.h5")(x).numpy(), first(x).numpy())


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet20", "mobilenet_v2"])
def test_networks(name, tmp_path, rng):
    model = zoo.create(name)
    x = gw.tensor(rng.random((1, 32, 32, 3), np.float32))
    with gw.no_grad():
        fast = gw.compile(model)
        fast.graph(x).save(tmp_path / "g.h5")
        np.testing.assert_array_equal(gw.load_graph(tmp_path / "g.h5")(x).numpy(), fast(x).numpy())


def test_slices_tuples_and_several_outputs(tmp_path, rng):
    x = gw.tensor(rng.random((4, 6), np.float32))
    fast = gw.compile(lambda x: (x[1:, ::-2], F.pad(x, ((1, 0), (0, 2)), value=float("inf"))))
    fast.graph(x).save(tmp_path / "g.h5")
    for one, two in zip(gw.load_graph(tmp_path / "g.h5")(x), fast(x), strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_a_training_step_goes_on_from_the_file(tmp_path, rng):
    layer = nn.Linear(3, 2)
    optimizer = nn.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)

    @gw.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    x, y = gw.tensor(rng.random((4, 3), np.float32)), gw.tensor(np.array([0, 1, 0, 1]))
    step(x, y)
    step.graph(x, y).save(tmp_path / "step.h5")
    loaded = gw.load_graph(tmp_path / "step.h5")
    for _ in range(3):
        assert loaded(x, y).item() == step(x, y).item()


def test_wrong_inputs(saved, x):
    loaded = gw.load_graph(saved)
    with pytest.raises(errors.ShapeError, match="0 inputs given, expected 1"):
        loaded()
    with pytest.raises(errors.ShapeError, match=r"captured for \(2, 8, 8, 3\)"):
        loaded(gw.tensor(np.zeros((1, 8, 8, 3), np.float32)))
    with pytest.raises(errors.DTypeError, match="float64, expected a tensor of float32"):
        loaded(x.astype("float64"))
    with pytest.raises(errors.DTypeError, match="ndarray"):
        loaded(x.numpy())


def test_files_that_are_no_graphs(tmp_path, saved):
    with pytest.raises(errors.GraphError, match="no graph file at"):
        gw.load_graph(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(errors.GraphError, match="cannot be read as a graph"):
        gw.load_graph(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(errors.GraphError, match="holds no graph"):
        gw.load_graph(tmp_path / "other.h5")
    with h5py.File(saved, "r+") as file:
        file.attrs["graftwork_graph"] = 99
    with pytest.raises(errors.GraphError, match="format 99, this version reads up to 2"):
        gw.load_graph(saved)


def rewrite(path, change):
    with h5py.File(path, "r+") as file:
        structure = json.loads(bytes(file["structure"][()]))
        change(structure)
        del file["structure"]
        file["structure"] = np.frombuffer(json.dumps(structure).encode(), np.uint8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["nodes"][0].update(op="launch_missiles"), "op 'launch_missiles' is not known"),
        (lambda s: s["nodes"][0]["inputs"].__setitem__(0, "nowhere"), "cannot be read"),
        (lambda s: s["nodes"].reverse(), "cannot be read|read before"),
        (lambda s: s["nodes"][0]["attrs"].update(stride={"tuple": [0, 0]}), "cannot be read|divi"),
        (lambda s: s["nodes"][0]["attrs"].update(stride=[1, 1]), "neither plain nor a marked tuple"),
        (lambda s: s["states"][0].update(shape=[1]), "its graph says"),
        (lambda s: s["states"][1].update(name=s["states"][0]["name"]), "two values are named"),
        (lambda s: s.pop("outputs"), "cannot be read"),
        (lambda s: s.update(outputs=["nothing"]), "cannot be read"),
        (lambda s: s["nodes"][0]["outputs"].append("more"), "cannot be read"),
    ],
)
def test_damaged_structure(saved, change, words):
    rewrite(saved, change)
    with pytest.raises(errors.GraphError, match=words):
        gw.load_graph(saved)


def test_links_and_bombs_are_refused(saved):
    with h5py.File(saved, "r+") as file:
        del file["values/0"]
        file["values/0"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(errors.GraphError, match="link to elsewhere"):
        gw.load_graph(saved)
    with h5py.File(saved, "r+") as file:
        del file["values/0"]
        file.create_dataset("values/0", shape=(1 << 40,), dtype="float32", chunks=(1024,))
    with pytest.raises(errors.GraphError, match="declares"):
        gw.load_graph(saved)


def test_random_damage_is_always_a_graph_error(saved, rng):
    good = saved.read_bytes()
    for _ in range(60):
        bad = bytearray(good[: rng.integers(1, len(good))] if rng.random() < 0.3 else good)
        for at in rng.integers(0, len(bad), rng.integers(1, 30)):
            bad[at] = rng.integers(256)
        saved.write_bytes(bytes(bad))
        with contextlib.suppress(errors.GraphError):  # anything else is a failure; a harmless change may load
            gw.load_graph(saved)


def test_a_failed_save_leaves_nothing(model, x, tmp_path):
    with gw.no_grad(), pytest.raises(errors.DataError, match="does not exist"):
        gw.compile(model).graph(x).save(tmp_path / "absent" / "g.h5")
    assert not list(tmp_path.iterdir())
