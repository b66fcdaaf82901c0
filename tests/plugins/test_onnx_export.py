"""ONNX files of captured graphs, checked by onnx and run by onnxruntime beside our own results."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, nn, zoo
from graftwork.nn import functional as F

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

from graftwork.plugins.onnx import export  # noqa: E402


def run(path, *arrays):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options)
    return session.run(None, {i.name: a for i, a in zip(session.get_inputs(), arrays, strict=True)})


def images(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def expected(model, x):
    with gw.no_grad():
        return model(gw.tensor(x)).numpy()


def close(found, wanted, tolerance=1e-5):
    """Sums come in another order: the error is measured against the largest value of the whole result."""
    assert found.shape == wanted.shape
    assert np.ptp(wanted) > 0  # a constant result would compare nothing
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


NETWORKS = (("glyphnet", None), ("lenet5", None), ("resnet20", None), ("squeezenet1_1", 64), ("mobilenet_v3_small", 32))


@pytest.mark.parametrize(("name", "side"), NETWORKS)
def test_networks_give_the_same_in_onnxruntime(name, side, tmp_path):
    gw.manual_seed(0)
    model = zoo.create(name) if side is None else zoo.create(name, input_shape=(side, side, 3))
    model.eval()
    export(model, tmp_path / "net.onnx")
    x = images(3, *model.input_shape)  # the example had one image
    close(run(tmp_path / "net.onnx", x)[0], expected(model, x))


def test_transposes_stand_at_the_edges_only(tmp_path):
    gw.manual_seed(0)
    model = zoo.create("resnet20")
    export(model, tmp_path / "net.onnx")
    proto = onnx.load(tmp_path / "net.onnx")
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert kinds["Conv"] == 19 and kinds["Transpose"] == 1
    assert kinds["BatchNormalization"] == 0  # folded into the convolutions
    assert proto.ir_version == 8 and proto.opset_import[0].version == 17


class Mixed(nn.Module):
    """What networks do around convolutions: gates, vectors against images, reductions in both layouts, resizing."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, padding="same")
        self.up = nn.ConvTranspose2d(4, 4, 3, 2, padding="same")
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(np.arange(1, 5, dtype=np.float32))

    def forward(self, x):
        y = F.silu(self.conv(x)) * self.scale
        gate = F.hard_sigmoid(F.global_avg_pool2d(y, keepdims=True))
        y = F.concat([y * gate, F.avg_pool2d(y, 3, 1, "same")], axis=3)[:, :, ::-1, 2:6]
        y = F.pad(F.gelu(y), ((0, 0), (1, 0), (0, 1), (0, 0)), 0.5)
        y = F.resize(self.norm(y), (8, 8), "bilinear")
        rows = F.max(self.up(y), axis=2) - F.mean(F.leaky_relu(F.resize(y, (16, 8), "nearest")), axis=2)
        return F.softmax(F.reshape(rows, (rows.shape[0], -1)) ** 2.0 / 8.0)


def test_mixed_ops_in_both_layouts(tmp_path):
    gw.manual_seed(0)
    model = Mixed()
    model.eval()
    export(model, tmp_path / "net.onnx", gw.tensor(images(2, 8, 8, 3)))
    x = images(5, 8, 8, 3)
    close(run(tmp_path / "net.onnx", x)[0], expected(model, x))


def test_float16_file_keeps_float32_at_its_edges(tmp_path):
    gw.manual_seed(0)
    model = zoo.create("lenet5")
    export(model, tmp_path / "half.onnx", dtype="float16")
    export(model, tmp_path / "full.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 0.6 * (tmp_path / "full.onnx").stat().st_size
    x = images(2, *model.input_shape)
    found = run(tmp_path / "half.onnx", x)[0]
    assert found.dtype == np.float32
    close(found, expected(model, x), 5e-3)  # ten bits of mantissa through five layers


def test_embedded_preprocessing(tmp_path):
    gw.manual_seed(0)
    model = zoo.create("resnet20")
    model.eval()
    export(model, tmp_path / "net.onnx", preprocessing=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    wanted = expected(model, model.normalise(pixels).numpy())
    close(run(tmp_path / "net.onnx", pixels.astype(np.float32))[0], wanted)


def test_the_batch_may_be_fixed(tmp_path):
    model = zoo.create("lenet5")
    export(model, tmp_path / "net.onnx", gw.tensor(images(2, *model.input_shape)), dynamic_batch=False)
    shape = onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_value == 2


def test_training_mode_is_restored(tmp_path):
    model = zoo.create("resnet20")
    model.train()
    export(model, tmp_path / "net.onnx")
    assert model.training


def test_refusals_say_what_is_wrong(tmp_path):
    model = zoo.create("lenet5")
    with pytest.raises(errors.ConfigError, match="float64.*expected 'float32' or 'float16'"):
        export(model, tmp_path / "net.onnx", dtype="float64")
    with pytest.raises(errors.ConfigError, match="give an example"):
        export(nn.Linear(2, 2), tmp_path / "net.onnx")
    with pytest.raises(errors.DataError, match="does not exist"):
        export(model, tmp_path / "missing" / "net.onnx")
    with pytest.raises(errors.GraphError, match="'one_hot' has no form in ONNX"):
        export(lambda i: F.one_hot(i, 3), tmp_path / "net.onnx", gw.tensor(np.array([0, 2])))
    assert list(tmp_path.iterdir()) == []


def test_command_writes_a_file_and_says_so(tmp_path):
    import json

    from click.testing import CliRunner

    from graftwork.cli import main

    path = tmp_path / "glyphs.onnx"
    result = CliRunner().invoke(main, ["export", "glyphnet", str(path), "--weights", "glyphs", "--batch", "2", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["bytes"] == path.stat().st_size and found["batch"] == 2
    model = zoo.create("glyphnet", weights="glyphs")
    model.eval()
    x = images(2, *model.input_shape)
    close(run(path, x)[0], expected(model, x))


def test_products_of_8_bits_need_float32(tmp_path):
    x, *rest = [gw.tensor(a) for a in _products("quantized_matmul")[0].arrays]
    with pytest.raises(errors.GraphError, match="export with dtype='float32'"):
        export(lambda x: F.quantized_matmul(x, *rest, x_scale=0.5), tmp_path / "q.onnx", x, dtype="float16")


def _products(name):
    """The op's samples: every combination of int8 and uint8, zero points, clamps, bias or none."""
    op = gw.nn.op.OPS[name]
    return [s for s in op.samples(np.random.default_rng(0)) if s.arrays[0].size and s.arrays[0].ndim > 1]


@pytest.mark.parametrize("name", ["quantized_conv2d", "quantized_matmul"])
def test_products_of_8_bits_become_qdq(name, tmp_path):
    op = gw.nn.op.OPS[name]
    for sample in _products(name):
        x, *rest = [gw.tensor(a) for a in sample.arrays]

        def call(x, rest=rest, attrs=sample.attrs):
            return op(x, *rest, **attrs)

        export(call, tmp_path / "q.onnx", x)
        found, wanted = run(tmp_path / "q.onnx", x.numpy())[0], call(x).numpy()
        assert found.dtype == wanted.dtype
        if wanted.dtype == np.float32:
            close(found, wanted)
        else:  # the runtime multiplies floats: where a value lies between two steps, it may round the other way
            apart = np.abs(found.astype(int) - wanted.astype(int))
            assert apart.max() <= 1 and (apart > 0).mean() < 0.02


class Gated(nn.Module):
    """What quantised networks are made of beside plain convolutions: tables, gates in floats, sums, all kinds of pooling."""

    input_shape = (12, 12, 3)

    def __init__(self):
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, padding="same"), nn.DepthwiseConv2d(8, 3, padding="same")
        self.gate, self.back, self.top = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(16, 5)

    def forward(self, x):
        y = F.hard_swish(self.stem(x * 2.0 - 1.0))
        y = y * F.hard_sigmoid(self.gate(F.global_avg_pool2d(y, keepdims=True)))
        y = F.relu6(self.back(self.wide(y)) + y)
        y = F.concat([F.max_pool2d(y, 3, 2, "same"), F.avg_pool2d(y, 3, 2, "same")], axis=3)
        return self.top(F.global_avg_pool2d(y))


def test_quantised_gates_sums_and_pools(tmp_path):
    from graftwork.plugins.quantize import quantize

    gw.manual_seed(0)
    model = Gated()
    model.eval()
    small = quantize(model, [images(4, 12, 12, 3)])
    ops = {n.op.name for n in small.graph().nodes}
    assert {"byte_table", "quantized_avg_pool2d", "quantized_max_pool2d", "chain"} <= ops
    export(small, tmp_path / "int8.onnx")
    x = images(5, 12, 12, 3)
    # a byte that is rounded the other way moves others behind it, by a step or two of 255
    close(run(tmp_path / "int8.onnx", x)[0], expected(small, x), 0.02)


def test_quantised_network_in_8_bit_kernels(tmp_path):
    """SqueezeNet: every product is one 8-bit kernel in onnxruntime too, so the results are at most a step apart."""
    from graftwork.plugins.quantize import quantize

    gw.manual_seed(0)
    squeezenet = zoo.create("squeezenet1_1", input_shape=(48, 48, 3))
    squeezenet.eval()
    model = quantize(squeezenet, [images(4, *squeezenet.input_shape)])
    export(model, tmp_path / "int8.onnx")
    x = images(5, *squeezenet.input_shape)  # calibrated with 4, exported with 1
    wanted = expected(model, x)
    found = run(tmp_path / "int8.onnx", x)[0]
    proto = onnx.load(tmp_path / "int8.onnx")
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert kinds["QuantizeLinear"] and kinds["DequantizeLinear"] > kinds["Conv"] > 10
    assert proto.ir_version == 8 and proto.opset_import[0].version == 17
    weights = [t for t in proto.graph.initializer if len(t.dims) == 4]
    assert weights and all(t.data_type == onnx.TensorProto.INT8 for t in weights)
    steps = [n.attrs["scale"] for n in model.graph().nodes if n.op.name == "dequantize"]
    assert np.abs(found - wanted).max() <= steps[-1] * 1.001 and np.ptp(wanted) > 10 * steps[-1]


def test_quantised_residual_network_with_preprocessing(tmp_path):
    """The network of the browser example: its own weights, pixels in, sums of branches."""
    from graftwork.plugins.quantize import quantize

    model = zoo.create("resnet20", weights="cifar10")
    model.eval()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    small = quantize(model, [model.normalise(pixels)])
    export(small, tmp_path / "int8.onnx", preprocessing=True)
    export(model, tmp_path / "float.onnx", preprocessing=True)
    assert (tmp_path / "int8.onnx").stat().st_size < 0.31 * (tmp_path / "float.onnx").stat().st_size
    close(run(tmp_path / "int8.onnx", pixels.astype(np.float32))[0], expected(small, model.normalise(pixels).numpy()), 0.03)


def test_command_quantises(tmp_path):
    import json

    from click.testing import CliRunner
    from PIL import Image

    from graftwork.cli import main

    (tmp_path / "pictures" / "cats").mkdir(parents=True)
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "pictures" / "cats" / f"{i}.png")
    path = tmp_path / "net.onnx"
    command = ["export", "resnet20", str(path), "--weights", "cifar10", "--int8", "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code != 0 and "--calibrate" in result.stderr and not path.exists()
    result = CliRunner().invoke(main, [*command, "--calibrate", str(tmp_path / "pictures")])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["dtype"] == "int8" and path.stat().st_size < 400_000
