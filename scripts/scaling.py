"""Where data parallelism stops paying: the table and the plot of docs/scaling.md, from the cost model.

    python scripts/scaling.py                     # all networks of the zoo, docs/scaling.svg, the table on the terminal
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
    options = parser.parse_args()
    network = Network(options.latency, options.bandwidth, share=options.share)
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
