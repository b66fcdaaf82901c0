"""Mixed precision: where casts go, and the loss scale. `tests/cuda/test_mixed_precision.py` computes with both."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork import nn
from graftwork.errors import ConfigError
from graftwork.nn import functional as F
from graftwork.nn.graph import Graph
from graftwork.nn.op import OPS
from graftwork.nn.ops.update import SGD_UPDATE  # noqa: F401 - its op is looked up by name
from graftwork.nn.passes.precision import lower_precision


def built(nodes, states=(), inputs=()):
    """A graph that asks for float16; nodes: (op, names of inputs, attributes, name of the output)."""
    graph = Graph("test", "cuda:0", "fp16")
    known = {name: graph.add_input(name, shape, np.float32) for name, shape in inputs}
    known |= {name: graph.add_state(name, gw.tensor(np.zeros(shape, np.float32))) for name, shape in states}
    for op, names, attrs, made in nodes:
        node = graph.append(OPS[op], [known[n] for n in names], attrs)
        if node.outputs:
            known[made] = node.output
    graph.outputs = [known[nodes[-1][3]]]
    lower_precision(graph)
    graph.check()
    return graph


def dtypes(graph):
    """(op, dtype of the first input, dtype of the output) of all nodes but casts."""
    return [(n.op.name, n.inputs[0].dtype.name, n.output.dtype.name if n.outputs else "") for n in graph.nodes
            if n.op.name != "cast"]  # fmt: skip


def test_products_are_lowered_and_what_follows_goes_on():
    graph = built(
        [("linear", ("x", "w"), {"activation": None}, "a"), ("add", ("a", "b"), {}, "c"), ("relu", ("c",), {}, "d"),
         ("linear", ("d", "v"), {"activation": None}, "e"), ("softmax", ("e",), {"axis": 1}, "f")],
        states=(("w", (3, 4)), ("b", (4,)), ("v", (4, 5))), inputs=(("x", (2, 3)),),
    )  # fmt: skip
    assert dtypes(graph) == [
        ("linear", "float16", "float16"), ("add", "float16", "float16"), ("relu", "float16", "float16"),
        ("linear", "float16", "float16"), ("softmax", "float32", "float32"),
    ]  # fmt: skip
    assert all(v.dtype == np.float32 for v in (*graph.inputs, *graph.states, *graph.outputs))
    narrow = [n for n in graph.nodes if n.op.name == "cast" and n.output.dtype == np.float16]
    assert [n.inputs[0].name for n in narrow] == ["x", "w", "b", "v"]  # nothing is narrowed that was 16 bits wide


def test_what_mixes_with_float32_stays_there():
    graph = built([("linear", ("x", "w"), {"activation": None}, "a"), ("add", ("a", "x"), {}, "c"), ("relu", ("x",), {}, "d"),
                   ("multiply", ("c", "d"), {}, "e")], states=(("w", (3, 3)),), inputs=(("x", (2, 3)),))  # fmt: skip
    assert [(op, given) for op, given, _ in dtypes(graph)] == [
        ("linear", "float16"), ("add", "float32"), ("relu", "float32"), ("multiply", "float32"),
    ]  # fmt: skip


def test_a_view_of_a_weight_is_the_view_of_its_copy():
    graph = built([("linear", ("x", "w"), {"activation": None}, "a"), ("transpose", ("w",), {"axes": (1, 0)}, "t"),
                   ("matmul", ("a", "t"), {}, "g")], states=(("w", (3, 4)),), inputs=(("x", (2, 3)),))  # fmt: skip
    assert sum(n.op.name == "cast" and n.inputs[0].name == "w" for n in graph.nodes) == 1
    assert dtypes(graph)[-1] == ("matmul", "float16", "float16")


def test_a_weight_that_has_been_updated_is_cast_anew():
    attrs = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "dampening": 0.0}
    graph = built([("linear", ("x", "w"), {"activation": None}, "a"), ("sgd_update", ("w", "w", "m", "lr"), attrs, ""),
                   ("linear", ("x", "w"), {"activation": None}, "b"), ("add", ("a", "b"), {}, "c")],
                  states=(("w", (3, 4)), ("m", (3, 4)), ("lr", ())), inputs=(("x", (2, 3)),))  # fmt: skip
    casts = [i for i, n in enumerate(graph.nodes) if n.op.name == "cast" and n.inputs[0].name == "w"]
    update = next(i for i, n in enumerate(graph.nodes) if n.op.name == "sgd_update")
    assert len(casts) == 2 and casts[0] < update < casts[1]
    assert ("sgd_update", "float32", "") in dtypes(graph)  # the weights that are updated are the float32 ones


def test_bad_options_say_what_is_expected():
    with pytest.raises(ConfigError, match="precision='int4'; expected None, 'bf16' or 'fp16'"):
        gw.compile(lambda x: x, precision="int4")
    with pytest.raises(ConfigError, match="needs tensors on a GPU"):
        gw.compile(lambda x: x * 2.0, precision="bf16")(gw.tensor([1.0]))
    model = nn.Linear(2, 2)
    optimizer = nn.optim.SGD(model.parameters())
    with pytest.raises(ConfigError, match="pass compile=True as well"):
        nn.Trainer(model, optimizer, precision="fp16")
    for wrong in ({"initial": 0.0}, {"initial": float("inf")}, {"interval": 0}):
        with pytest.raises(ConfigError, match="expected a positive number and at least 1"):
            nn.LossScale(**wrong)


def trained(batches, scale=None, **more):
    gw.manual_seed(0)
    model = nn.Linear(3, 2)
    trainer = nn.Trainer(model, nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loss=F.mse_loss, progress=False,
                         compile=True, loss_scale=scale, **more)  # fmt: skip
    loader = nn.DataLoader(nn.ArrayDataset(*batches), 2, shuffle=False)
    trainer.fit(loader, 1)
    return trainer, {**model.state_dict(), **trainer.optimizer.state_dict()}


def test_a_scaled_step_is_a_step(rng):
    """Powers of two in, the same out: not a bit differs."""
    data = rng.standard_normal((6, 3)).astype(np.float32), rng.standard_normal((6, 2)).astype(np.float32)
    _, plain = trained(data)
    trainer, scaled = trained(data, nn.LossScale(2.0**10, interval=2))
    for name, value in plain.items():
        np.testing.assert_array_equal(scaled[name], value, err_msg=name)
    assert trainer.skipped == 0 and trainer.loss_scale.value.item() == 2.0**11 and trainer.loss_scale.good == 1


def test_an_overflow_leaves_the_step_out_and_halves_the_scale(rng):
    x, y = rng.standard_normal((6, 3)).astype(np.float32), rng.standard_normal((6, 2)).astype(np.float32)
    good = np.r_[x[:2], x[4:]], np.r_[y[:2], y[4:]]
    x[2, 0] = np.inf  # in the second batch of three
    _, without = trained(good, nn.LossScale(1024.0))
    trainer, state = trained((x, y), nn.LossScale(1024.0))
    assert trainer.skipped == 1 and trainer.loss_scale.value.item() == 512 and trainer.loss_scale.good == 1
    for name, value in without.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


def test_the_scale_is_kept_in_checkpoints(rng, tmp_path):
    data = rng.standard_normal((4, 3)).astype(np.float32), rng.standard_normal((4, 2)).astype(np.float32)
    trained(data, nn.LossScale(64.0, interval=3), checkpoint_path=tmp_path / "run.h5")
    model = nn.Linear(3, 2)
    again = nn.Trainer(model, nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), compile=True, loss_scale=nn.LossScale(),
                       checkpoint_path=tmp_path / "run.h5")  # fmt: skip
    assert again.resume() and again.loss_scale.state_dict() == {"value": 64.0, "good": 2}
