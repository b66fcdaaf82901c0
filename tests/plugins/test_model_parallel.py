"""Split layers and pipelines against the same network in one process, on two and four ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import graftwork as gw
from graftwork import nn
from graftwork.errors import ConfigError, MissingDependency, RankError, ShapeError
from graftwork.nn import functional as F
from graftwork.plugins.model_parallel import Mesh, split_cross_entropy, split_pipeline, split_tensor
from graftwork.plugins.model_parallel.mesh import Ranks
from graftwork.plugins.model_parallel.pipeline import order
from graftwork.plugins.model_parallel.split import suggest
from graftwork.plugins.model_parallel.stages import cut

WORKER = Path(__file__).parent / "model_parallel_worker.py"
CLOSE = 1e-5  # float32 sums in another order


def ranks_say(count, tmp_path_factory):
    """What each rank of the worker script found."""
    from graftwork.plugins.data_parallel.launch import find_mpiexec

    try:
        mpiexec = find_mpiexec()
    except MissingDependency as error:
        pytest.skip(str(error))
    output = tmp_path_factory.mktemp("ranks") / "found.json"
    environment = os.environ | {"MPIR_CVAR_POLLS_BEFORE_YIELD": "10", "NUMBA_NUM_THREADS": "1"}
    run = subprocess.run([mpiexec, "-n", str(count), sys.executable, str(WORKER), str(count), str(output)],
                         capture_output=True, text=True, env=environment, timeout=600)  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return ranks_say(2, tmp_path_factory)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return ranks_say(4, tmp_path_factory)


def require_equal(found):
    assert found["loss"] < CLOSE and found["weights"] < CLOSE and found.get("gradients", 0) < CLOSE, found


@pytest.mark.parametrize("check", ["tensor", "tensor, split loss", "compiled", "data"])
def test_split_layers_equal_one_process(two, check):
    for rank in two:
        require_equal(rank[check])
        assert rank[check]["fell"] > 0.01  # the network learns, so equal weights say something


def test_split_layers_take_half_the_memory(two):
    assert [rank["tensor"]["share"] for rank in two] == [pytest.approx(0.5, abs=0.03)] * 2
    assert two[0]["data"]["share"] == 1


@pytest.mark.parametrize("check", ["gpipe", "1f1b", "measured"])
def test_pipelines_equal_one_process(two, check):
    for rank in two:
        require_equal(rank[check])
    assert two[1][check]["output"] < CLOSE
    first, second = (set(rank[check]["names"]) for rank in two)
    assert not first & second and len(first | second) == 12 and first and second


def test_pipelines_report_memory_and_waiting(two):
    assert two[0]["gpipe"]["in_flight"] == 4 and two[0]["1f1b"]["in_flight"] == 2 and two[1]["1f1b"]["in_flight"] == 1
    assert two[0]["1f1b"]["bubble"] == pytest.approx(1 / 5)
    assert two[0]["gpipe"]["activation_bytes"] > 0 and 0 <= two[0]["gpipe"]["waited"] <= 1
    whole = sum(p.data.nbytes for p in small().parameters())
    assert sum(rank["gpipe"]["parameter_bytes"] for rank in two) == whole


def test_mistakes_on_several_ranks_are_named(two):
    assert "3 ranks, but 2 run" in two[0]["mesh"] and two[0]["mesh"].startswith("ConfigError")
    assert "odd: 7 output channels cannot be split evenly over tensor=2" in two[0]["uneven"]
    assert "norm: a BatchNorm cannot be split" in two[0]["norm"]
    assert "micro_batches=4 do not divide a batch of 6" in two[0]["batch"]


@pytest.mark.parametrize("check", ["data x tensor", "tensor x pipeline", "data x pipeline", "pipeline"])
def test_combinations_on_four_ranks(four, check):
    for rank in four:
        require_equal(rank[check])


# -- what one process can tell -----------------------------------------------------------------------------------------


def small():
    sys.path.insert(0, str(WORKER.parent))
    try:
        from model_parallel_worker import make
    finally:
        sys.path.pop(0)
    return make()


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_schedules_do_everything_once_and_in_order(schedule):
    for stages, micro in ((1, 1), (3, 2), (4, 8)):
        for stage in range(stages):
            done = list(order(schedule, stage, stages, micro))
            assert [i for what, i in done if what == "forward"] == list(range(micro))
            assert [i for what, i in done if what == "backward"] == list(range(micro))
            assert all(done.index(("forward", i)) < done.index(("backward", i)) for i in range(micro))


def test_1f1b_keeps_no_more_micro_batches_than_stages():
    for stage in range(4):
        held, most = 0, 0
        for what, _ in order("1f1b", stage, 4, 16):
            held += 1 if what == "forward" else -1
            most = max(most, held)
        assert most == 4 - stage


def test_stages_in_a_row_are_the_network():
    model = small()
    x = gw.tensor(np.random.default_rng(0).standard_normal((2, 6, 6, 3)).astype(np.float32))
    for count in (1, 2, 3):
        values = [x]
        stages = cut(model, x, count)
        for stage in stages:
            values = stage(values)
        np.testing.assert_allclose(values[0].numpy(), model(x).numpy(), rtol=1e-5, atol=1e-6)
        assert sum(len(s.parameters) for s in stages) == 12
    assert len(cut(model, x, 2, ["right"])[1].inputs) == 2  # the cut runs through the skip connection


def test_balance_is_by_cost():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])
    x = gw.tensor(np.zeros((2, 4), np.float32))
    assert [len(s.nodes) for s in cut(model, x, 3, cost=lambda node: 1.0)] == [2, 2, 2]
    weights = iter([5.0, 1, 1, 1, 1, 1])
    assert [len(s.nodes) for s in cut(model, x, 2, cost=lambda node: next(weights))] == [1, 5]


def test_the_rule_found_opens_pairs_and_leaves_what_does_not_divide():
    model = nn.Sequential(a=nn.Linear(4, 8), r=nn.ReLU(), b=nn.Linear(8, 6), c=nn.Linear(6, 7))
    assert suggest(model, 2) == {"a": "column_open", "b": "row_open"}
    assert suggest(nn.Sequential(a=nn.Linear(4, 8), s=nn.Softmax(), b=nn.Linear(8, 6)), 2) == {"a": "column", "b": "column"}
    assert suggest(nn.Sequential(d=nn.DepthwiseConv2d(4, 3)), 2) == {}


def test_one_process_is_a_mesh_of_one():
    mesh = Mesh()
    model, whole = small(), small()
    split_tensor(model, mesh)
    x = gw.tensor(np.random.default_rng(0).standard_normal((4, 6, 6, 3)).astype(np.float32))
    labels = gw.tensor(np.array([0, 5, 2, 2]))
    np.testing.assert_allclose(model(x).numpy(), whole(x).numpy(), rtol=1e-5, atol=1e-6)
    for smoothing in (0.0, 0.1):
        for reduction in ("mean", "sum", "none"):
            ours = split_cross_entropy(whole(x), labels, mesh, smoothing, reduction)
            np.testing.assert_allclose(ours.numpy(), F.cross_entropy(whole(x), labels, smoothing, reduction).numpy(), rtol=1e-5)


def test_mistakes_are_named():
    mesh, model = Mesh(), small()
    x = gw.tensor(np.zeros((2, 6, 6, 3), np.float32))
    with pytest.raises(ConfigError, match=r"tensor=0; expected a number of ranks"):
        Mesh(tensor=0)
    with pytest.raises(ConfigError, match=r"no layer 'heat'; it has stem, left"):
        split_tensor(model, mesh, {"heat": "column"})
    with pytest.raises(ConfigError, match=r"'head': 'diagonal'; expected one of column"):
        split_tensor(model, mesh, {"head": "diagonal"})
    with pytest.raises(ConfigError, match=r"d: a DepthwiseConv2d cannot be split"):
        split_tensor(nn.Sequential(d=nn.DepthwiseConv2d(4, 3)), mesh, {"d": "row"})
    with pytest.raises(ConfigError, match=r"groups=2 cannot be split"):
        split_tensor(nn.Sequential(g=nn.Conv2d(4, 4, 3, groups=2)), mesh, {"g": "row"})
    with pytest.raises(ConfigError, match=r"1 boundaries for 3 stages; expected 2"):
        cut(model, x, 3, ["head"])
    with pytest.raises(ConfigError, match=r"no layer 'heat'"):
        cut(model, x, 2, ["heat"])
    with pytest.raises(ConfigError, match=r"'block.1' has no parameters"):
        cut(model, x, 2, ["block.1"])
    with pytest.raises(ConfigError, match=r"empty, or stands before it"):
        cut(model, x, 3, ["head", "left"])
    with pytest.raises(ConfigError, match=r"99 stages of a network"):
        cut(model, x, 99)
    with pytest.raises(ConfigError, match=r"cost='free'"):
        cut(model, x, 2, cost="free")
    with pytest.raises(ConfigError, match=r"schedule='2f2b'"):
        split_pipeline(model, mesh, x, 2, schedule="2f2b")
    with pytest.raises(ConfigError, match=r"micro_batches=0"):
        split_pipeline(model, mesh, x, 0)
    with pytest.raises(ShapeError, match=r"stages were made for \(2, 6, 6, 3\)"):
        split_pipeline(model, mesh, x, 2).predict(np.zeros((8, 6, 6, 3), np.float32))
    with pytest.raises(ConfigError, match=r"reduction='most'"):
        split_cross_entropy(gw.tensor(np.zeros((1, 2), np.float32)), gw.tensor(np.array([0])), mesh, reduction="most")
    with pytest.raises(RankError, match=r"cannot send"):
        Ranks().send(np.zeros(1), 1, 0)


def test_a_parameter_in_two_stages_is_named():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(self.b(self.a(x)))

    with pytest.raises(ConfigError, match=r"a\.weight is used in stage 0 and in stage 1"):
        cut(Tied(), gw.tensor(np.zeros((1, 4), np.float32)), 2, ["b"])
