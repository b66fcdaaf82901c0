"""Where data parallelism stops paying: the table and the plot of docs/scaling.md, from the cost model.

    python scripts/scaling.py                     # all networks of the zoo, docs/scaling.svg, the table on the terminal
    python scripts/scaling.py --published         # beside Horovod's figures
    python scripts/scaling.py resnet50 vgg16 --rate 5e12 --bandwidth 3.1e9 --share 4 --latency 1e-5

Nothing is computed but shapes: every network is captured once, its ops say what they cost.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from graftwork import zoo
from graftwork.nn.init import values_follow
from graftwork.plugins.data_parallel.cost import Layer, Network, best_bucket, layers_of, step

WORKERS = [2**i for i in range(13)]
SHOWN = ("mobilenet_v2", "efficientnet_b0", "resnet50", "inception_v3", "alexnet", "vgg16")

# images a second of one P100: TensorFlow's benchmarks page of 2017, batch 64, synthetic data; ResNet-101: a sixteenth of the
# 1,656.82 that Horovod's benchmarks page gives for 16 GPUs
P100 = {"inception_v3": 142.0, "resnet101": 1656.82 / 16, "vgg16": 154.0}
# Horovod's efficiency, servers of 4 Pascal GPUs with a 25 Gbit/s link: its benchmarks page, and that page for 32 servers
HOROVOD = {("inception_v3", 512): 0.90, ("resnet101", 512): 0.90, ("vgg16", 512): 0.68, ("vgg16", 128): 0.79}
FUSION = 64 << 20  # bytes of Horovod's buckets


def profile(name: str, batch: int, rate: float) -> tuple[list[Layer], float, int, float]:
    """(layers, forward seconds, parameters, floating-point operations of one image's forward pass) of a zoo network."""
    with values_follow():  # only shapes matter
        model = zoo.create(name)
    layers, forward = layers_of(model, model.input_shape, batch, rate)
    return layers, forward, model.count_parameters(), forward * rate / batch


def weak(layers: list[Layer], forward: float, network: Network) -> dict[int, float]:
    """Efficiency by number of workers, each with the same batch, at the best bucket size."""
    return {p: step(layers, forward, p, network, best_bucket(layers, forward, p, network)).efficiency for p in WORKERS}


def strong(layers: list[Layer], forward: float, batch: int, total: int, network: Network) -> int:
    """The most workers that one batch of `total` images can be divided among at 50 % efficiency or more."""
    best = 1
    for p in (p for p in WORKERS if p <= total):
        scale = total / p / batch
        mine = [Layer(layer.gradient_bytes, layer.backward * scale) for layer in layers]
        if step(mine, forward * scale, p, network, best_bucket(mine, forward * scale, p, network)).efficiency >= 0.5:
            best = p
    return best


def published(network: Network) -> None:
    """Predicted beside published: compute from one GPU's speed, all else from the model."""
    print("| network | workers | predicted | without overlap | Horovod, published |\n|---|---|---|---|---|")
    for (name, workers), measured in HOROVOD.items():
        layers, forward, _, _ = profile(name, 64, 1e12)
        scale = 64 / P100[name] / (forward + sum(layer.backward for layer in layers))
        mine = [Layer(layer.gradient_bytes, layer.backward * scale) for layer in layers]
        found = [step(mine, forward * scale, workers, network, FUSION, overlap, "ring").efficiency for overlap in (True, False)]
        print(f"| {name} | {workers} | {found[0]:.0%} | {found[1]:.0%} | {measured:.0%} |".replace("%", " %"), flush=True)


def plot(curves: dict[str, dict[int, float]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "graftwork"  # the same picture, the same file
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(list(curve), [100 * e for e in curve.values()], marker="o", markersize=3, label=name)
    axes.set(xscale="log", xlabel="workers", ylabel="predicted efficiency, %", title=title, ylim=(0, 102))
    axes.set_xscale("log", base=2)
    axes.set_xticks(WORKERS[::2], [str(p) for p in WORKERS[::2]])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    temporary = path.with_suffix(".partial")
    figure.savefig(temporary, format="svg", metadata={"Date": None})
    temporary.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names of the zoo; all by default")
    parser.add_argument("--batch", type=int, default=64, help="images a worker and step")
    parser.add_argument("--total", type=int, default=4096, help="images a step in all, for the last column")
    parser.add_argument("--rate", type=float, default=5e12, help="floating-point operations a second of a worker")
    parser.add_argument("--latency", type=float, default=1e-5, help="seconds a message")
    parser.add_argument("--bandwidth", type=float, default=25e9 / 8, help="bytes a second of a host's link")
    parser.add_argument("--share", type=int, default=4, help="workers on a host")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "scaling.svg")
    parser.add_argument("--published", action="store_true", help="compare with Horovod's figures instead")
    options = parser.parse_args()
    network = Network(options.latency, options.bandwidth, share=options.share)
    if options.published:
        published(network)
        return
    curves = {}
    print("| network | parameters, M | GFLOP an image | efficiency at 8 | 64 | 512 | 4,096 | most workers for a batch of "
          f"{options.total:,} |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name in options.networks or zoo.list_models():
        layers, forward, parameters, flops = profile(name, options.batch, options.rate)
        curve = weak(layers, forward, network)
        most = strong(layers, forward, options.batch, options.total, network)
        cells = " | ".join(f"{100 * curve[p]:.0f} %" for p in (8, 64, 512, 4096))
        print(f"| {name} | {parameters / 1e6:.1f} | {flops / 1e9:.2f} | {cells} | {most:,} |", flush=True)
        if name in SHOWN or options.networks:
            curves[name] = curve
    plot(curves, f"{options.batch} images a worker, {options.rate / 1e12:g} TFLOP/s, {options.share} workers a "
                 f"{options.bandwidth * 8 / 1e9:g} Gbit/s link", options.output)  # fmt: skip


if __name__ == "__main__":
    main()
