"""Golden outputs of Keras's layers for tests/zoo/test_keras_layers.py, and a check of whole-model files in both directions.

    pip install keras jax && python scripts/keras_layer_goldens.py      # writes tests/zoo/goldens/layers.{json,npz}
    python scripts/keras_layer_goldens.py --check                       # Keras and Graftwork read each other's files

Every tensor is filled by the formula of tests/zoo/filling.py, so the goldens hold configurations and outputs only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "zoo")]
os.environ.setdefault("KERAS_BACKEND", "jax")

import filling  # noqa: E402 - the paths above lead to it
import keras  # noqa: E402
from keras import layers as K  # noqa: E402

GOLDENS = ROOT / "tests" / "zoo" / "goldens" / "layers"
IMAGE, SERIES, ROW, VOLUME = (6, 5, 4), (7, 4), (6,), (4, 5, 6, 2)
CASES: dict[str, tuple] = {}  # name -> (input shapes, function of the input tensors, highest integers or 0 an input)


def case(name, shapes, function, integers=0):
    shapes = [shapes] if not isinstance(shapes, list) else shapes
    CASES[name] = (shapes, function, integers if isinstance(integers, list) else [integers] * len(shapes))


def convolutions():
    case("conv2d", IMAGE, K.Conv2D(3, 3, activation="relu"))
    case("conv2d same stride dilation", IMAGE, K.Conv2D(3, (3, 2), padding="same", dilation_rate=2))
    case("conv2d groups", IMAGE, K.Conv2D(6, 3, strides=2, groups=2, use_bias=False, padding="same"))
    case("conv1d", SERIES, K.Conv1D(3, 3, strides=2, activation="tanh"))
    case("conv1d same", SERIES, K.Conv1D(3, 4, padding="same", strides=2))
    case("conv1d causal", SERIES, K.Conv1D(3, 3, padding="causal", dilation_rate=2))
    case("conv1d groups", SERIES, K.Conv1D(4, 2, groups=2, use_bias=False))
    case("conv3d", VOLUME, K.Conv3D(3, (2, 3, 2), activation="relu"))
    case("conv3d same", VOLUME, K.Conv3D(3, 3, strides=2, padding="same"))
    case("depthwise2d", IMAGE, K.DepthwiseConv2D(3, depth_multiplier=2, padding="same", strides=2))
    case("depthwise1d", SERIES, K.DepthwiseConv1D(3, depth_multiplier=2, strides=2))
    case("separable2d", IMAGE, K.SeparableConv2D(3, 3, depth_multiplier=2, activation="relu"))
    case("separable1d", SERIES, K.SeparableConv1D(3, 3, padding="same"))
    for padding in ("valid", "same"):
        case(f"transpose2d {padding}", IMAGE, K.Conv2DTranspose(3, 3, strides=2, padding=padding))
        case(f"transpose1d {padding}", SERIES, K.Conv1DTranspose(3, 3, strides=2, padding=padding))
    case("transpose2d odd", IMAGE, K.Conv2DTranspose(3, (2, 5), strides=(3, 2), padding="same", use_bias=False))
    case("transpose2d output_padding", IMAGE, K.Conv2DTranspose(3, 3, strides=2, padding="same", output_padding=1))


def pools():
    for n, shape in ((1, SERIES), (2, IMAGE), (3, VOLUME)):
        for kind in ("Max", "Average"):
            pool = getattr(K, f"{kind}Pooling{n}D")
            case(f"{kind} pool {n}", shape, pool(2, strides=1))
            if n < 3 or kind == "Max":
                case(f"{kind} pool {n} same", shape, pool(3, strides=2, padding="same"))
            case(f"{kind} global {n}", shape, getattr(K, f"Global{kind}Pooling{n}D")(keepdims=n == 2))
        case(f"pad {n}", shape, getattr(K, f"ZeroPadding{n}D")(2 if n == 3 else (1, 2)))
        case(f"crop {n}", shape, getattr(K, f"Cropping{n}D")(1))
        case(f"upsample {n}", shape, getattr(K, f"UpSampling{n}D")(2))
    case("upsample bilinear", IMAGE, K.UpSampling2D((2, 3), interpolation="bilinear"))


def shapes():
    case("flatten", IMAGE, K.Flatten())
    case("reshape", IMAGE, K.Reshape((-1, 8)))
    case("permute", IMAGE, K.Permute((3, 1, 2)))
    case("repeat", ROW, K.RepeatVector(3))
    case("dense rank 2", ROW, K.Dense(3, activation="gelu"))
    case("dense rank 4", IMAGE, K.Dense(3, use_bias=False))
    case("einsum", SERIES, K.EinsumDense("abc,cd->abd", output_shape=(None, 3), bias_axes="d", activation="relu"))
    case("einsum dots", IMAGE, K.EinsumDense("...x,xy->...y", output_shape=3, bias_axes="y"))
    case("einsum heads", SERIES, K.EinsumDense("btd,dnh->btnh", output_shape=(None, 2, 3), bias_axes="nh"))
    case("embedding", (5,), K.Embedding(7, 3), 7)
    case("identity", ROW, K.Identity())
    case("dropout", ROW, K.Dropout(0.5))
    case("noise", ROW, K.GaussianNoise(0.5))
    case("activity", ROW, K.ActivityRegularization(0.1))


def activations():
    for name in (
        "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "hard_silu", "sigmoid", "hard_sigmoid", "tanh",
        "softplus", "softmax", "log_softmax", "exponential", "softsign", "mish", "celu", "squareplus", "sparse_plus",
        "sparse_sigmoid", "hard_tanh", "tanh_shrink", "soft_shrink", "hard_shrink", "log_sigmoid", "glu",
    ):  # fmt: skip
        case(f"activation {name}", ROW, K.Activation(name))
    case("relu layer", ROW, K.ReLU(max_value=0.5, negative_slope=0.1, threshold=0.2))
    case("leaky", ROW, K.LeakyReLU(negative_slope=0.3))
    case("elu layer", ROW, K.ELU(alpha=0.5))
    case("prelu", IMAGE, K.PReLU(shared_axes=[1, 2]))
    case("prelu own", ROW, K.PReLU())
    case("softmax axis", SERIES, K.Softmax(axis=1))
    case("softmax axes", IMAGE, K.Softmax(axis=(1, 2)))
    case("dense activation layer", ROW, K.Dense(3, activation=K.LeakyReLU(negative_slope=0.2)))


def normalisations():
    case("batch", IMAGE, K.BatchNormalization())
    case("batch bare", IMAGE, K.BatchNormalization(scale=False, center=False, epsilon=0.1))
    case("layer", SERIES, K.LayerNormalization())
    case("layer axes", IMAGE, K.LayerNormalization(axis=(1, 3), epsilon=0.1))
    case("layer bare", SERIES, K.LayerNormalization(center=False, scale=False))
    case("layer scale", SERIES, K.LayerNormalization(center=False))
    case("group", IMAGE, K.GroupNormalization(2))
    case("group instance", IMAGE, K.GroupNormalization(-1, center=False))
    case("group series", SERIES, K.GroupNormalization(1))
    case("rms", SERIES, K.RMSNormalization())
    case("unit", IMAGE, K.UnitNormalization(axis=(1, 3)))


def merges():
    for kind in ("Add", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"):
        case(kind, [IMAGE, IMAGE, IMAGE], getattr(K, kind)())
    case("Subtract", [ROW, ROW], K.Subtract())
    case("Add broadcast", [IMAGE, (1, 4)], K.Add())
    case("Concatenate axis", [SERIES, (3, 4)], K.Concatenate(axis=1))
    case("Dot", [SERIES, SERIES], K.Dot(axes=1))
    case("Dot axes", [SERIES, (5, 4)], K.Dot(axes=(2, 2)))
    case("Dot vectors", [ROW, ROW], K.Dot(axes=-1, normalize=True))


def recurrences():
    for kind in ("LSTM", "GRU", "SimpleRNN"):
        layer = getattr(K, kind)
        case(kind, SERIES, layer(3))
        case(f"{kind} sequences backwards", SERIES, layer(3, return_sequences=True, go_backwards=True, use_bias=False))
        case(f"{kind} state", SERIES, layer(3, return_state=True, return_sequences=True, activation="relu"))
        case(f"{kind} both", SERIES, K.Bidirectional(layer(3, return_sequences=True)))
    for mode in ("sum", "mul", "ave", None):
        case(f"both {mode}", SERIES, K.Bidirectional(K.GRU(3), merge_mode=mode))
    case("both state", SERIES, K.Bidirectional(K.LSTM(3, return_state=True)))
    case("both other", SERIES, K.Bidirectional(K.LSTM(3), backward_layer=K.GRU(2, go_backwards=True)))
    case("GRU before", SERIES, K.GRU(3, reset_after=False))
    case("LSTM hard", SERIES, K.LSTM(3, recurrent_activation="hard_sigmoid"))
    case("cell", SERIES, K.RNN(K.GRUCell(3), return_sequences=True))
    case("cells", SERIES, K.RNN([K.LSTMCell(3), K.LSTMCell(2), K.GRUCell(4)], return_state=True))
    case("initial state", [SERIES, (3,), (3,)], lambda x, h, c: K.LSTM(3)(x, initial_state=[h, c]))
    case("both initial state", [SERIES, (3,), (3,)], lambda x, h, c: K.Bidirectional(K.GRU(3))(x, initial_state=[h, c]))
    case("time distributed dense", SERIES, K.TimeDistributed(K.Dense(3, activation="relu")))
    case("time distributed conv", (3, *IMAGE), K.TimeDistributed(K.Conv2D(2, 3)))
    case("time distributed batch", (3, *ROW), K.TimeDistributed(K.BatchNormalization()))
    inner = keras.Sequential([K.Input(ROW), K.Dense(2), K.Dense(3)])
    case("time distributed model", (3, *ROW), K.TimeDistributed(inner))
    case("seq2seq", [SERIES, (4, 2)], _seq2seq)


def _seq2seq(x, y):
    _, h, c = K.LSTM(3, return_state=True)(x)
    return K.Dense(2)(K.LSTM(3, return_sequences=True)(y, initial_state=[h, c]))


def masks():
    def embedded(then):
        return lambda x: then(K.Embedding(5, 4, mask_zero=True)(x))

    for kind in ("LSTM", "GRU"):
        case(f"mask {kind}", (6,), embedded(getattr(K, kind)(3)), 5)
    case("mask sequences", (6,), embedded(K.SimpleRNN(3, return_sequences=True)), 5)
    case("mask both", (6,), embedded(K.Bidirectional(K.LSTM(3, return_sequences=True))), 5)
    case("mask average", (6,), embedded(lambda x: K.GlobalAveragePooling1D()(K.Dense(3)(x))), 5)
    case("mask ends", (6,), embedded(lambda x: K.Conv1D(2, 3)(x)), 5)
    case("mask heads", (6,), embedded(lambda x: K.MultiHeadAttention(2, 3)(x, x)), 5)
    case("mask attention", (6,), embedded(lambda x: K.Attention()([x, x])), 5)
    case("mask add", (6,), embedded(lambda x: K.LSTM(3)(K.Add()([x, K.Dense(4)(x)]))), 5)
    case("masking", SERIES, lambda x: K.GRU(3)(K.Masking(0.0)(K.ReLU(threshold=0.6)(x))))


def attentions():
    case("heads", [SERIES], lambda x: K.MultiHeadAttention(2, 3)(x, x))
    case("heads cross", [SERIES, (5, 3)], lambda x, y: K.MultiHeadAttention(2, 3, output_shape=6)(x, y))
    case("heads key", [SERIES, (5, 3), (5, 2)], lambda x, y, z: K.MultiHeadAttention(2, 3, use_bias=False)(x, y, key=z))
    case("heads causal", SERIES, lambda x: K.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True))
    case("heads scores", SERIES, lambda x: K.MultiHeadAttention(1, 3)(x, x, return_attention_scores=True))
    case("groups", SERIES, lambda x: K.GroupQueryAttention(3, 4, 2)(x, x))
    case("attention", [SERIES, (5, 4)], K.Attention(use_scale=True))
    case("attention key", [SERIES, (5, 3), (5, 4)], K.Attention())
    case("attention concat", [SERIES, (5, 4)], K.Attention(score_mode="concat", use_scale=True))
    case("attention causal", [SERIES, SERIES], lambda x, y: K.Attention()([x, y], use_causal_mask=True))
    case("additive", [SERIES, (5, 4)], K.AdditiveAttention())
    case("additive bare", [SERIES, (5, 4)], K.AdditiveAttention(use_scale=False))


def preprocessing():
    case("rescaling", IMAGE, K.Rescaling(0.5, offset=-1))
    case("normalization", SERIES, K.Normalization())
    case("normalization axes", IMAGE, K.Normalization(axis=(1, 3)))
    case("normalization given", SERIES, K.Normalization(mean=[1, 2, 3, 4], variance=[1, 2, 3, 4]))
    case("normalization inverse", SERIES, K.Normalization(mean=1.0, variance=2.0, invert=True, axis=None))
    case("resizing", IMAGE, K.Resizing(8, 3))
    case("resizing nearest", IMAGE, K.Resizing(4, 10, interpolation="nearest"))
    case("resizing crop", (8, 5, 2), K.Resizing(4, 6, crop_to_aspect_ratio=True))
    case("center crop", IMAGE, K.CenterCrop(3, 2))
    case("center crop larger", IMAGE, K.CenterCrop(9, 3))
    case("one hot", (1,), K.CategoryEncoding(5, output_mode="one_hot"), 5)
    case("multi hot", (4,), K.CategoryEncoding(6), 6)
    case("count", (4,), K.CategoryEncoding(3, output_mode="count"), 3)
    case("augmentations", IMAGE, lambda x: K.RandomZoom(0.1)(K.RandomRotation(0.1)(K.RandomFlip()(x))))


def structures():
    case("operations", [ROW, ROW], lambda x, y: (2 * x + y) / (keras.ops.square(y) + 1.0) - keras.ops.exp(-x))
    case("mean operation", SERIES, lambda x: keras.ops.mean(keras.ops.abs(x), axis=1))
    case("shared", [ROW, ROW], _shared)
    case("nested", IMAGE, _nested)
    case("nested twice", [ROW, ROW], _nested_twice)
    case("several outputs", ROW, lambda x: [K.Dense(2)(x), K.Dense(3, name="with.dots")(x)])
    case("transformer", (6,), _transformer, 5)


def _shared(x, y):
    dense = K.Dense(3)
    return K.Concatenate()([dense(x), dense(y)])


def _nested(x):
    block = keras.Sequential([K.Conv2D(3, 3), K.BatchNormalization(), K.ReLU()])
    start = K.Input((4, 3, 3))
    inner = keras.Model(start, [K.Dense(2)(K.BatchNormalization()(start)), K.GlobalMaxPooling2D()(start)])
    a, b = inner(block(x))
    frozen = keras.Sequential([K.BatchNormalization(), K.Dense(2)])
    frozen.trainable = False
    return K.Concatenate()([K.Flatten()(a), frozen(b)])


def _nested_twice(x, y):
    start = K.Input(ROW)
    inner = keras.Model(start, K.Dense(3)(keras.Sequential([K.Dense(4), K.BatchNormalization()])(start)))
    return inner(x) - inner(y)


def _transformer(x):
    x = K.Embedding(5, 4)(x)
    x = K.LayerNormalization()(x + K.MultiHeadAttention(2, 2)(x, x))
    x = K.LayerNormalization()(x + K.Dense(4)(K.Dense(8, activation="gelu")(x)))
    return K.Dense(2, activation="softmax")(K.GlobalAveragePooling1D()(x))


for _part in (convolutions, pools, shapes, activations, normalisations, merges, recurrences, masks, attentions, preprocessing,
              structures):  # fmt: skip
    _part()


def legacy(layer):
    return layer.trainable_weights + layer.non_trainable_weights


def build(name):
    """The case's model with formula weights, and its inputs."""
    shapes, function, integers = CASES[name]
    keras.utils.clear_session()
    inputs = [K.Input(shape, name=f"in{i}") for i, shape in enumerate(shapes)]
    tensors = function(*inputs) if not isinstance(function, K.Layer) or len(inputs) == 1 else function(inputs)
    model = keras.Model(inputs, tensors)
    for layer in model.layers:
        for i, v in enumerate(legacy(layer)):
            v.assign(filling.layer_value(name, layer.name, i, v.name, tuple(v.shape)).astype(v.dtype))
        if isinstance(layer, K.Normalization):
            layer.finalize_state()
    arrays = [filling.layer_input(name, i, (2, *s), n) for i, (s, n) in enumerate(zip(shapes, integers, strict=True))]
    return model, arrays


def outputs_of(model, arrays):
    found = model(arrays if len(arrays) > 1 else arrays[0], training=False)
    return [np.asarray(a) for a in keras.tree.flatten(found)]


NOISE = ("_initializer", "_regularizer", "_constraint")


def lean(value):
    """A configuration without what only matters for training from scratch."""
    if isinstance(value, dict):
        drop = {k for k in value if k.endswith(NOISE) or k in ("build_config", "seed", "dtype", "compile_config")}
        return {k: lean(v) for k, v in value.items() if k not in drop}
    return [lean(v) for v in value] if isinstance(value, list) else value


def write():
    arrays, facts = {}, {}
    for name, (shapes, _, integers) in CASES.items():
        model, inputs = build(name)
        found = outputs_of(model, inputs)
        for i, a in enumerate(found):
            arrays[f"{name}/{i}"] = a
        facts[name] = {"shapes": shapes, "integers": integers, "config": lean(json.loads(model.to_json()))}
        print(f"{name}: {[a.shape for a in found]}", flush=True)
    np.savez_compressed(GOLDENS.with_suffix(".npz"), **arrays)
    lines = [f"  {json.dumps(name)}: {json.dumps(fact, separators=(',', ':'))}" for name, fact in facts.items()]
    GOLDENS.with_suffix(".json").write_text("{\n" + ",\n".join([f'  "keras": "{keras.__version__}"', *lines]) + "\n}\n")


def check():
    """Keras saves .h5 and .keras, we load both, save, and Keras loads that."""
    from graftwork import zoo

    worst: dict[str, float] = {}
    for name in CASES:
        model, inputs = build(name)
        expected = outputs_of(model, inputs)
        with tempfile.TemporaryDirectory() as folder:
            for suffix in ("keras", "h5"):
                theirs, back = f"{folder}/theirs.{suffix}", f"{folder}/ours.{suffix}"
                try:
                    model.save(theirs)
                except Exception as error:  # Keras's own limits are reported, not ours to judge
                    print(f"{name}: Keras cannot save .{suffix}: {error!s:.100}", flush=True)
                    continue
                ours = zoo.load_keras(theirs)
                key = f"{suffix} read"
                worst[key] = max(worst.get(key, 0), difference(run(ours, inputs), expected, name, suffix))
                zoo.save_keras(ours, back)
                try:
                    again = keras.models.load_model(back)
                except Exception as error:
                    try:
                        keras.models.load_model(theirs)
                    except Exception:
                        print(f"{name}: Keras cannot load its own .{suffix}", flush=True)
                        continue
                    raise SystemExit(f"{name}: Keras loads its own .{suffix} and not ours: {error}") from error
                key = f"{suffix} written"
                worst[key] = max(worst.get(key, 0), difference(outputs_of(again, inputs), expected, name, suffix))
    print({k: f"{v:.1e}" for k, v in worst.items()})


def run(model, inputs):
    import graftwork as gw

    with gw.no_grad():
        found = model(*(gw.tensor(a) for a in inputs))
    return [a.numpy() for a in (found if isinstance(found, tuple) else (found,))]


def difference(found, expected, name, suffix):
    errors = [float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)) for a, b in zip(found, expected, strict=True)]
    if not max(errors) < 1e-5:
        print(f"{name}: .{suffix} differs by {max(errors):.1e}", flush=True)
    return max(errors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="read each other's files instead of writing goldens")
    check() if parser.parse_args().check else write()
