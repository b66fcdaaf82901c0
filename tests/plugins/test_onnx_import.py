"""ONNX files read back: operators by small cases, whole networks beside onnxruntime, and what strangers' files may do."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, nn, zoo
from graftwork.nn.compile import trace

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from graftwork.plugins.onnx import export, load  # noqa: E402

NAMES = ("float32", "float64", "int64", "int32", "int8", "uint8", "bool")
TYPES = {np.dtype(t): helper.np_dtype_to_tensor_dtype(np.dtype(t)) for t in NAMES}


def model_of(nodes, inputs, outputs, opset=17, constants=None):
    """A ModelProto. inputs: name -> array; outputs: name -> dtype, of any shape."""
    graph = helper.make_graph(
        nodes, "test", [helper.make_tensor_value_info(n, TYPES[a.dtype], a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, TYPES[np.dtype(t)], None) for n, t in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def ints(low, high, *shape):
    return np.random.default_rng(7).integers(low, high, shape)


def ours(proto, *arrays):
    with gw.no_grad():
        found = load(proto.SerializeToString())(*map(gw.tensor, arrays))
    return [f.numpy() for f in (found if isinstance(found, tuple) else (found,))]


def theirs(proto, *arrays):
    session = ort.InferenceSession(proto.SerializeToString())
    return session.run(None, {i.name: a for i, a in zip(session.get_inputs(), arrays, strict=True)})


I64 = np.int64
IMAGE = normal(2, 4, 7, 6)
CASES = {  # operator, attributes, inputs, constants, opset
    "conv": ("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1], "group": 2}, [IMAGE], [normal(6, 2, 3, 3), normal(6)], 17),
    "conv same lower": ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, [IMAGE], [normal(3, 4, 2, 3)], 17),
    "conv 1d": ("Conv", {"dilations": [2]}, [normal(2, 3, 9)], [normal(4, 3, 3)], 17),
    "conv 3d": ("Conv", {"pads": [1, 0, 1, 1, 1, 0]}, [normal(1, 2, 4, 5, 6)], [normal(3, 2, 3, 2, 2), normal(3)], 17),
    "conv transpose": ("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0], "group": 2},
                       [IMAGE], [normal(4, 3, 3, 3), normal(6)], 17),
    "conv transpose shape": ("ConvTranspose", {"strides": [3, 2], "output_shape": [21, 12]}, [IMAGE], [normal(4, 2, 3, 3)], 17),
    "max pool ceil": ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, [IMAGE], [], 17),
    "max pool dilated": ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2]}, [IMAGE], [], 17),
    "avg pool padded": ("AveragePool", {"kernel_shape": [3, 2], "pads": [1, 1, 1, 0], "count_include_pad": 1}, [IMAGE], [], 17),
    "avg pool ceil": ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1],
                                      "count_include_pad": 1}, [normal(1, 2, 6, 6)], [], 19),
    "global pool": ("GlobalAveragePool", {}, [IMAGE], [], 17),
    "batch norm": ("BatchNormalization", {"epsilon": 1e-3}, [IMAGE], [normal(4), normal(4), normal(4), np.abs(normal(4))], 17),
    "instance norm": ("InstanceNormalization", {}, [IMAGE], [normal(4), normal(4)], 17),
    "layer norm": ("LayerNormalization", {"axis": 2}, [IMAGE], [normal(7, 6), normal(7, 6)], 17),
    "lrn": ("LRN", {"size": 3, "alpha": 0.1}, [IMAGE], [], 17),
    "gemm": ("Gemm", {"transA": 1, "alpha": 0.5, "beta": 2.0}, [normal(5, 3)], [normal(5, 4), normal(4)], 17),
    "matmul vector": ("MatMul", {}, [normal(2, 3, 5)], [normal(5)], 17),
    "einsum": ("Einsum", {"equation": "bij,bjk->bki"}, [normal(2, 3, 4), normal(2, 4, 5)], [], 17),
    "reduce": ("ReduceLogSumExp", {"axes": [1, -1], "keepdims": 0}, [IMAGE], [], 17),
    "reduce none": ("ReduceSum", {"noop_with_empty_axes": 1}, [IMAGE], [np.zeros(0, I64)], 17),
    "argmax last": ("ArgMax", {"axis": 1, "select_last_index": 1}, [np.round(IMAGE)], [], 17),
    "softmax 12": ("Softmax", {"axis": 1}, [IMAGE], [], 12),
    "cumsum": ("CumSum", {"exclusive": 1, "reverse": 1}, [IMAGE], [np.array(2)], 17),
    "top k": ("TopK", {"axis": 1, "largest": 0}, [IMAGE], [np.array([3])], 17),
    "slice back": ("Slice", {}, [IMAGE], [np.array([-1, 5]), np.array([-9, 0]), np.array([2, 3]), np.array([-2, -1])], 17),
    "pad reflect": ("Pad", {"mode": "reflect"}, [IMAGE], [np.array([0, 0, 2, 1, 0, 0, 1, 3])], 17),
    "pad away": ("Pad", {}, [IMAGE], [np.array([0, 1, -2, 1, 0, 0, 1, -1]), np.float32(2)], 17),
    "split": ("Split", {"axis": 3}, [IMAGE], [np.array([1, 3, 2])], 17),
    "tile": ("Tile", {}, [normal(2, 3)], [np.array([2, 3])], 17),
    "gather": ("Gather", {"axis": 2}, [IMAGE], [ints(-7, 7, 2, 3)], 17),
    "gather elements": ("GatherElements", {"axis": 1}, [IMAGE], [ints(-4, 4, 2, 3, 7, 6)], 17),
    "gather nd": ("GatherND", {"batch_dims": 1}, [IMAGE], [ints(0, 4, 2, 5, 2)], 17),
    "scatter elements": ("ScatterElements", {"axis": 1, "reduction": "add"}, [IMAGE],
                         [ints(0, 4, 2, 2, 7, 6), normal(2, 2, 7, 6)], 17),
    "scatter nd": ("ScatterND", {}, [normal(4, 5)], [np.array([[1], [3]]), normal(2, 5)], 17),
    "depth to space": ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [IMAGE], [], 17),
    "resize cubic": ("Resize", {"mode": "cubic"}, [IMAGE], ["", np.array([1, 1, 1.7, 0.6], np.float32)], 17),
    "resize linear": ("Resize", {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, [IMAGE],
                      ["", "", np.array([2, 4, 11, 3])], 17),
    "resize nearest": ("Resize", {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}, [IMAGE],
                       ["", np.array([1, 1, 2, 2], np.float32)], 17),
    "resize image": ("Resize", {"mode": "linear"}, [IMAGE], ["", "", np.array([2, 4, 14, 4])], 17),
    "clip": ("Clip", {}, [IMAGE], [np.float32(-0.5), np.float32(0.4)], 17),
    "hard sigmoid": ("HardSigmoid", {}, [IMAGE], [], 17),
    "pow": ("Pow", {}, [np.abs(IMAGE)], [np.array([3], I64)], 17),
    "div integers": ("Div", {}, [ints(-50, 50, 40).astype(np.int32)], [np.resize(np.int32([-7, -3, 2, 9]), 40)], 17),
    "mod": ("Mod", {}, [ints(-50, 50, 40)], [np.resize([-7, -3, 2, 9], 40)], 17),
    "quantize": ("QuantizeLinear", {"axis": 1}, [4 * IMAGE], [np.float32([0.1, 0.2, 0.3, 0.4]), np.int8([0, 3, -5, 9])], 17),
    "dequantize": ("DequantizeLinear", {}, [ints(0, 255, 3, 4).astype(np.uint8)], [np.float32(0.1), np.uint8(7)], 17),
    "matmul integer": ("MatMulInteger", {}, [ints(0, 255, 3, 4).astype(np.uint8)],
                       [ints(-99, 99, 4, 5).astype(np.int8), np.uint8(9)], 17),
    "lstm": ("LSTM", {"hidden_size": 3, "direction": "bidirectional"}, [normal(5, 2, 4)],
             [normal(2, 12, 4), normal(2, 12, 3), normal(2, 24)], 17),
    "gru": ("GRU", {"hidden_size": 3, "linear_before_reset": 1}, [normal(5, 2, 4)],
            [normal(1, 9, 4), normal(1, 9, 3), normal(1, 18)], 17),
    "nll loss": ("NegativeLogLikelihoodLoss", {"ignore_index": 2}, [IMAGE], [ints(0, 4, 2, 7, 6), np.abs(normal(4))], 17),
    "cross-entropy": ("SoftmaxCrossEntropyLoss", {"reduction": "sum"}, [IMAGE], [ints(0, 4, 2, 7, 6)], 17),
    "attention": ("Attention", {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1}, [normal(2, 5, 12)],
                  [normal(2, 5, 6), normal(2, 5, 6), np.arange(25).reshape(5, 5) % 3 > 0], 23),
    "rotary": ("RotaryEmbedding", {"num_heads": 2, "interleaved": 1}, [normal(2, 5, 12)],
               [normal(9, 3), 2 * normal(9, 3)[::-1].copy(), ints(0, 9, 2, 5)], 23),
    "group norm": ("GroupNormalization", {"num_groups": 2}, [IMAGE], [normal(4), normal(4)], 21),
    "one hot": ("OneHot", {"axis": 1}, [ints(-5, 6, 3, 4)], [np.array([4]), np.float32([-1, 2])], 17),
    "trilu": ("Trilu", {"upper": 0}, [IMAGE], [np.array(-1)], 17),
    "where": ("Where", {}, [IMAGE > 0], [normal(6), normal(7, 1)], 17),
    "is inf": ("IsInf", {"detect_negative": 0}, [np.float32([1, np.inf, -np.inf, np.nan])], [], 17),
    "prelu": ("PRelu", {}, [IMAGE], [normal(4, 1, 1)], 17),
    "lp pool": ("LpPool", {"kernel_shape": [3, 2], "p": 3, "strides": [2, 2]}, [IMAGE], [], 18),
    "grid": ("GridSample", {"padding_mode": "reflection", "mode": "bicubic", "align_corners": 1}, [IMAGE],
             [1.4 * normal(2, 3, 5, 2)], 17),
    "grid border": ("GridSample", {"padding_mode": "border"}, [IMAGE], [1.4 * normal(2, 3, 5, 2)], 17),
    "boxes": ("NonMaxSuppression", {}, [np.abs(normal(2, 9, 4))],
              [np.abs(normal(2, 3, 9)), np.array([3]), np.float32([0.3]), np.float32([0.5])], 17),
    "dft": ("DFT", {"axis": 1, "onesided": 1}, [normal(2, 9, 1)], [np.array(8)], 17),
    "upsample": ("Upsample", {"mode": "nearest"}, [IMAGE], [np.float32([1, 1, 2, 3])], 9),
}  # fmt: skip
OUTPUTS = {"TopK": ("float32", "int64"), "Split": ("float32",) * 3, "ArgMax": ("int64",), "Mod": ("int64",), "Div": ("int32",),
           "QuantizeLinear": ("int8",), "MatMulInteger": ("int32",), "LSTM": ("float32",) * 3,
           "GRU": ("float32",) * 2, "IsInf": ("bool",), "NonMaxSuppression": ("int64",)}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators_give_what_onnxruntime_gives(name):
    kind, attrs, arrays, constants, opset = CASES[name]
    given = {f"x{i}": a for i, a in enumerate(arrays)}
    fixed = {f"c{i}": np.asarray(a) for i, a in enumerate(constants) if not isinstance(a, str)}
    places = [*given, *("" if isinstance(a, str) else f"c{i}" for i, a in enumerate(constants))]
    outputs = {f"y{i}": t for i, t in enumerate(OUTPUTS.get(kind, ("float32",)))}
    proto = model_of([helper.make_node(kind, places, list(outputs), **attrs)], given, outputs, opset, fixed)
    for found, wanted in zip(ours(proto, *arrays), theirs(proto, *arrays), strict=True):
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        # sums of at most a few hundred products in float32, in another order
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("name", "side"), [("resnet20", None), ("squeezenet1_1", 64), ("mobilenet_v3_small", 32)])
def test_networks_come_back(name, side, tmp_path):
    gw.manual_seed(0)
    model = zoo.create(name) if side is None else zoo.create(name, input_shape=(side, side, 3))
    model.eval()
    export(model, tmp_path / "net.onnx")
    back = load(tmp_path / "net.onnx")
    x = gw.tensor(normal(3, *model.input_shape))
    with gw.no_grad():
        wanted, found = model(x).numpy(), back(x).numpy()
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max() > 0


def test_layouts_cost_no_transposes_between_layers(tmp_path):
    model = zoo.create("resnet20")
    model.eval()
    export(model, tmp_path / "net.onnx")
    with gw.no_grad():
        graph = trace(load(tmp_path / "net.onnx"), gw.tensor(normal(1, 32, 32, 3)))
    known = {*graph.states, *graph.constants}
    moved = [n for n in graph.nodes if n.op.name == "transpose" and n.inputs[0] not in known]
    assert sum(n.op.name == "conv2d" for n in graph.nodes) > 18 and not moved


def test_a_network_that_is_read_is_compiled_trained_and_written_again(tmp_path):
    gw.manual_seed(0)
    model = zoo.create("lenet5")
    model.eval()
    export(model, tmp_path / "net.onnx")
    back = load(tmp_path / "net.onnx")
    x = gw.tensor(normal(2, *model.input_shape))
    assert back.count_parameters() == model.count_parameters()
    with gw.no_grad():
        eager = back(x).numpy()
        np.testing.assert_allclose(gw.compile(back)(x).numpy(), eager, rtol=1e-5, atol=1e-6)
    optimizer = nn.optim.SGD(back.parameters(), lr=0.1)

    def step(x, labels):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(back(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    labels, compiled = gw.tensor(np.array([1, 2])), gw.compile(step)
    losses = [compiled(x, labels).item() for _ in range(4)]
    assert losses[-1] < losses[0]
    export(back, tmp_path / "again.onnx", x)
    session = ort.InferenceSession(str(tmp_path / "again.onnx"))
    with gw.no_grad():
        wanted = back(x).numpy()
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(wanted - eager).max() > 1e-3  # it has learned


def test_shape_arithmetic_is_done_beforehand():
    """What exporters write for x.reshape(x.shape[0], -1): it must not stand in the way of a capture."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["row"]), helper.make_node("Concat", ["row", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["y"]),
    ]  # fmt: skip
    constants = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    x = normal(3, 2, 4)
    model = load(model_of(nodes, {"x": x}, {"y": "float32"}, constants=constants).SerializeToString())
    graph = gw.compile(model).graph(gw.tensor(x))
    assert [n.op.name for n in graph.nodes] == ["reshape"]


def test_branches_and_loops():
    x = normal(2, 3)
    double = helper.make_graph([helper.make_node("Add", ["x", "x"], ["a"])], "then", [],
                               [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)])  # fmt: skip
    same = helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "else", [],
                             [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)])  # fmt: skip
    chosen = helper.make_node("If", ["c"], ["y"], then_branch=double, else_branch=same)
    proto = model_of([chosen], {"x": x, "c": np.array(True)}, {"y": "float32"})
    for truth in (True, False):
        np.testing.assert_array_equal(ours(proto, x, np.array(truth))[0], x * (1 + truth))
    with pytest.raises(errors.CaptureError):
        gw.compile(load(proto.SerializeToString()))(gw.tensor(x), gw.tensor(np.array(True)))
    infos = [helper.make_tensor_value_info(n, t, s) for n, t, s in
             (("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("v", TensorProto.FLOAT, [2, 3]))]  # fmt: skip
    body = helper.make_graph(
        [helper.make_node("Add", ["v", "x"], ["w"]), helper.make_node("Identity", ["go"], ["on"]),
         helper.make_node("Identity", ["w"], ["seen"])], "body", infos,
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("on", TensorProto.BOOL, []), ("w", TensorProto.FLOAT, [2, 3]),
                                                                ("seen", TensorProto.FLOAT, [2, 3]))],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["count", "", "x"], ["y", "all"], body=body)
    proto = model_of([loop], {"x": x}, {"y": "float32", "all": "float32"}, constants={"count": np.array(3)})
    y, seen = ours(proto, x)
    np.testing.assert_allclose(y, 4 * x, rtol=1e-6)
    np.testing.assert_allclose(seen, [2 * x, 3 * x, 4 * x], rtol=1e-6)


# -- what strangers' files may do --------------------------------------------------------------------------------------


def relu():
    return model_of([helper.make_node("Relu", ["x"], ["y"], name="first")], {"x": normal(2, 3)}, {"y": "float32"})


def test_unknown_operators_and_opsets_are_named():
    nodes = [helper.make_node("Det", ["x"], ["y"]), helper.make_node("Det", ["x"], ["z"]),
             helper.make_node("StringConcat", ["x", "x"], ["w"])]  # fmt: skip
    proto = model_of(nodes, {"x": normal(2, 2)}, {"y": "float32"}, 20)
    with pytest.raises(errors.GraphError, match=r"Det \(2 nodes\), StringConcat"):
        load(proto.SerializeToString())
    foreign = relu()
    foreign.graph.node[0].domain = "com.example"
    foreign.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(errors.GraphError, match="com.example:Relu"):
        load(foreign.SerializeToString())
    for opset in (5, 99):
        other = relu()
        other.opset_import[0].version = opset
        with pytest.raises(errors.GraphError, match=f"opset {opset}; this reads 7 to 28"):
            load(other.SerializeToString())


def test_damaged_files(tmp_path):
    export(zoo.create("lenet5"), tmp_path / "net.onnx")
    whole = (tmp_path / "net.onnx").read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        with pytest.raises(errors.GraphError):
            load(whole[:cut])
    with pytest.raises(errors.GraphError, match="no ONNX file at"):
        load(tmp_path / "missing.onnx")
    unsorted = relu()
    unsorted.graph.node[0].input[0] = "nothing"
    with pytest.raises(errors.GraphError, match="not valid ONNX"):
        load(unsorted.SerializeToString())


def test_attributes_that_nobody_looks_at_are_refused():
    x = normal(5, 2, 4)
    node = helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=3, clip=1.0)
    proto = model_of([node], {"x": x}, {"y": "float32"}, constants={"w": normal(1, 9, 4), "r": normal(1, 9, 3)})
    with pytest.raises(errors.GraphError, match="GRU node 'y': clip is not supported"):
        ours(proto, x)


def external(path, **entries):
    """relu(x) + w, with w's values in another file."""
    add = helper.make_node("Add", ["x", "w"], ["y"])
    proto = model_of([add], {"x": normal(4)}, {"y": "float32"}, constants={"w": normal(4)})
    t = proto.graph.initializer[0]
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        t.external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString())
    return path


def test_values_in_other_files(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"head" + normal(4).tobytes())
    (tmp_path / "secret.bin").write_bytes(normal(4).tobytes())
    path = folder / "net.onnx"
    found = load(external(path, location="weights.bin", offset=4, length=16))(gw.tensor(normal(4)))
    np.testing.assert_array_equal(found.numpy(), normal(4) + normal(4))
    with pytest.raises(errors.GraphError, match="load the model by its path"):
        load(path.read_bytes())
    with pytest.raises(errors.GraphError, match="gone.bin, which does not exist"):
        load(external(path, location="gone.bin"))
    with pytest.raises(errors.GraphError, match="outside of the model's folder; refused"):
        load(external(path, location="../secret.bin"))
    with pytest.raises(errors.GraphError, match="is that file cut off"):
        load(external(path, location="weights.bin", offset=4, length=400))
    with pytest.raises(errors.GraphError):
        load(external(path, location="weights.bin", offset=12, length=8))  # fewer values than the shape says


def test_inputs_are_checked():
    model = load(relu().SerializeToString())
    assert str(model.signature[0]) == "x: float32[2, 3]"
    with pytest.raises(errors.ShapeError, match=r"input 'x' has shape \(3, 3\); the file declares"):
        model(gw.tensor(normal(3, 3)))
    with pytest.raises(errors.DTypeError, match="input 'x' is float64"):
        model(gw.tensor(np.zeros((2, 3))))
    with pytest.raises(errors.ShapeError, match="0 inputs given, expected 1"):
        model()
