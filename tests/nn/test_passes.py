"""Each pass, before and after: what it changes, what it must leave alone, and that results stay."""

import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, nn
from graftwork.nn import functional as F
from graftwork.nn import passes
from graftwork.nn.graph import Graph
from graftwork.nn.op import OPS


def names(graph):
    return [n.op.name for n in graph.nodes]


def compiled_graph(function, *tensors):
    with gw.no_grad():
        return gw.compile(function).graph(*tensors)


def same(function, *tensors, tolerance=1e-5):
    """Compiled equals eager; returns the optimised graph."""
    with gw.no_grad():
        fast = gw.compile(function)
        expected, found = function(*tensors).numpy(), fast(*tensors).numpy()
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
        return fast.graph(*tensors)


@pytest.fixture
def x(rng):
    return gw.tensor(rng.standard_normal((2, 6, 6, 6)).astype(np.float32))


def test_dead_code_goes_and_writes_stay(x):
    counter = gw.tensor(np.float32(0.0))

    def f(x):
        F.exp(x)  # nobody reads this
        OPS["increment"](counter)
        return F.matmul(x, x)

    assert names(compiled_graph(f, x)) == ["increment", "matmul"]


def test_constants_are_folded(x):
    def f(x):
        scale = gw.tensor([1.0, 2.0, 3.0])
        return F.matmul(x, x) * (scale + 1.0).sum()

    graph = same(f, x)
    assert "sum" not in names(graph) and not graph.states


def test_common_subexpressions_are_computed_once(x):
    graph = same(lambda x: F.matmul(x, x) + F.matmul(x, x) * 2.0, x)
    assert names(graph).count("matmul") == 1


def test_a_write_in_between_keeps_both(x):
    state = gw.tensor(np.ones(6, np.float32))

    def f(x):
        before = F.matmul(state[None, :], x[0, 0])
        OPS["moving_average"](state, x[0, 0, 0], momentum=0.5)
        return before - F.matmul(state[None, :], x[0, 0])

    with gw.no_grad():
        fast = gw.compile(f)
        assert names(fast.graph(x)).count("matmul") == 2
        start = state.numpy().copy()
        found = fast(x).numpy()
        nn.modules.module.assign(state, start)
        np.testing.assert_allclose(found, f(x).numpy(), rtol=1e-5)
        assert np.abs(found).max() > 1e-3


def conv(channels=6, out=12, **options):
    gw.manual_seed(1)
    return nn.Conv2d(channels, out, 3, **options)


def test_padding_goes_into_the_convolution(x):
    layer = conv()
    graph = same(lambda x: layer(F.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)))), x)
    assert "pad" not in names(graph) and graph.nodes[0].attrs["padding"] == ((1, 2), (0, 1))


def test_padding_stays_where_it_matters(x):
    layer = conv()
    assert "pad" in names(same(lambda x: layer(F.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), value=1.0)), x))
    assert "pad" in names(same(lambda x: F.max_pool2d(F.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3), x))
    assert "pad" not in names(same(lambda x: F.max_pool2d(F.pad(F.relu(x), ((0, 0), (1, 1), (1, 1), (0, 0))), 3), x))


def norm(channels, rng):
    layer = nn.BatchNorm(channels)
    for t in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
        nn.modules.module.assign(t, 0.5 + rng.random(channels))
    return layer.eval()


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"groups": 6}, {"groups": 2, "bias": False}])
def test_batch_norm_goes_into_the_convolution(x, rng, options):
    layer, bn = conv(**options), norm(12, rng)
    graph = same(lambda x: bn(layer(x)), x)
    assert "batch_norm" not in names(graph)
    with gw.no_grad():
        steps = gw.compile(lambda x: bn(layer(x))).executable(x).steps
    assert [s.node.op.name for s in steps] == ["conv2d"]  # the rest is computed ahead


def test_batch_norm_goes_into_a_linear_layer(rng):
    layer, bn = nn.Linear(4, 12), norm(12, rng)
    x = gw.tensor(rng.random((3, 4), np.float32))
    assert "batch_norm" not in names(same(lambda x: bn(layer(x)), x))


def test_folded_weights_follow_later_changes(x, rng):
    layer, bn = conv(), norm(12, rng)
    fast = gw.compile(lambda x: bn(layer(x)))
    with gw.no_grad():
        fast(x)
        nn.modules.module.assign(bn.moving_mean, rng.random(12))
        nn.modules.module.assign(layer.weight, rng.random(layer.weight.shape))
        np.testing.assert_allclose(fast(x).numpy(), bn(layer(x)).numpy(), rtol=1e-5, atol=1e-5)


def test_batch_norm_stays_out_of_a_shared_result(x, rng):
    layer, bn = conv(), norm(12, rng)

    def f(x):
        y = layer(x)
        return bn(y) + F.exp(y)

    same(f, x)


def test_bias_residual_and_activation_become_an_epilogue(x):
    one, two = conv(6, 6, padding=1), conv(6, 6, padding=1, bias=False)
    graph = same(lambda x: F.relu(two(F.relu(one(x))) + x), x)
    assert names(graph) == ["conv2d", "conv2d"]
    assert [n.attrs["activation"] for n in graph.nodes] == ["relu", "relu"] and len(graph.nodes[1].inputs) == 4


def test_two_convolutions_meet_in_a_sum(x):
    one, two = conv(6, 8), conv(6, 8)
    graph = same(lambda x: F.relu(one(x) + two(x)), x)
    assert names(graph) == ["conv2d", "conv2d"] and graph.nodes[1].inputs[3] is graph.nodes[0].output


def test_epilogues_stay_away_from_shared_results(x):
    layer = conv()

    def f(x):
        y = layer(x)
        return F.relu(y) + y

    graph = same(f, x)
    assert graph.nodes[0].attrs["activation"] is None


def test_an_output_that_is_also_read_is_kept(x):
    layer = conv()

    def f(x):
        y = layer(x)
        return y, F.relu(y)

    with gw.no_grad():
        a, b = gw.compile(f)(x)
        np.testing.assert_allclose(b.numpy(), np.maximum(a.numpy(), 0), rtol=1e-6)


def test_a_pass_that_breaks_the_graph_is_named(x):
    def swap(graph):
        graph.nodes.reverse()
        return graph

    passes.register("swapper", swap)
    try:
        with pytest.raises(errors.GraphError, match=r"pass 'swapper' broke the graph: .* is read before it is computed, in\n"):
            compiled_graph(lambda x: F.matmul(F.exp(F.matmul(x, x)), x), x)
        with pytest.raises(errors.ConfigError, match="exists already"):
            passes.register("swapper", swap)
    finally:
        passes.unregister("swapper")


def test_a_pass_must_return_a_graph(x):
    passes.register("forgetful", lambda graph: None)
    try:
        with pytest.raises(errors.GraphError, match="'forgetful' returned a NoneType"):
            compiled_graph(lambda x: x + 1.0, x)
    finally:
        passes.unregister("forgetful")


def test_a_pass_of_a_plugin_runs(x):
    seen = []

    def look(graph):
        seen.append(names(graph))
        return graph

    passes.register("looker", look)
    try:
        compiled_graph(lambda x: F.matmul(x, x), x)
    finally:
        passes.unregister("looker")
    assert seen == [["matmul"]] and list(passes.PASSES)[-1] == "clean_up"


def test_the_checker_sees_what_is_wrong():
    graph = Graph("g")
    a = graph.add_input("a", (2, 3), "float32")
    node = graph.append(OPS["exp"], [a], {})
    graph.outputs = [node.output]
    graph.check()
    node.output.shape = (3, 2)
    with pytest.raises(errors.GraphError, match=r"its op gives"):
        graph.check()
    node.output.shape = (2, 3)
    graph.nodes.append(node)
    with pytest.raises(errors.GraphError, match="computed twice"):
        graph.check()
    graph.nodes.clear()
    with pytest.raises(errors.GraphError, match="outputs that nothing computes"):
        graph.check()
    other = graph.add_input("b", (4,), "float32")
    bad = graph.append(OPS["exp"], [a], {})
    bad.op, bad.inputs = OPS["add"], [a, other]
    with pytest.raises(errors.GraphError, match="does not fit its inputs"):
        graph.check()


def test_the_text_names_the_users_line(x):
    layer = conv()
    text = str(compiled_graph(lambda x: layer(x), x))
    assert "conv2d(" in text and "test_passes.py:" in text and "float32[2, 4, 4, 12]" in text
