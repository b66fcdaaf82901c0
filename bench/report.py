"""Results of `bench.networks` as ratios, a Markdown table and a picture."""

from __future__ import annotations

import math
from pathlib import Path

QUIET = 0.05  # cores that other processes may keep busy before a figure is doubtful
OURS = ("ours_eager", "ours_compiled")
NAMES = {
    "ours_eager": "Graftwork eager", "ours_compiled": "Graftwork compiled", "torch_eager": "PyTorch eager",
    "torch_channels_last": "PyTorch channels-last", "torch_compile": "torch.compile",
    "torch_compile_channels_last": "torch.compile channels-last", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO",
}  # fmt: skip


def ratios(candidates: dict[str, dict]) -> dict[str, float]:
    """Our medians over the best peer's and over PyTorch eager's, by "ours_x/best_peer" and "ours_x/torch_eager"."""
    peers = {name: c["median_ms"] for name, c in candidates.items() if name not in OURS}
    found = {}
    for name in OURS:
        if name in candidates and peers:
            found[f"{name}/best_peer"] = round(candidates[name]["median_ms"] / min(peers.values()), 3)
        if name in candidates and "torch_eager" in peers:
            found[f"{name}/torch_eager"] = round(candidates[name]["median_ms"] / peers["torch_eager"], 3)
    return found


def geometric_means(entries: list[dict]) -> dict[str, float]:
    """Of every ratio that all cases have."""
    if not entries:
        return {}
    common = [key for key in entries[0]["ratios"] if all(key in e["ratios"] for e in entries)]
    return {
        key: round(math.exp(sum(math.log(e["ratios"][key]) for e in entries) / len(entries)), 3) for key in common
    }  # fmt: skip


def table(entries: list[dict]) -> str:
    """Medians in milliseconds, the best one of a row in bold, and our ratios."""
    columns = [name for name in NAMES if any(name in e["candidates"] for e in entries)]
    keys = [key for name in OURS if name in columns for key in (f"{name}/best_peer", f"{name}/torch_eager")]
    heads = ["network, batch", *(NAMES[name] for name in columns), *(key.replace("_", " ") for key in keys)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for e in entries:
        medians = {name: c["median_ms"] for name, c in e["candidates"].items()}
        best = min(medians.values(), default=0)
        cells = [f"{e['network']}, {e['batch']}"]
        cells += [_cell(medians.get(name), medians.get(name) == best) for name in columns]
        cells += [f"{e['ratios'][key]:.2f}" if key in e["ratios"] else "" for key in keys]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(milliseconds: float | None, best: bool) -> str:
    if milliseconds is None:
        return ""
    return f"**{milliseconds:.1f}**" if best else f"{milliseconds:.1f}"


def markdown(result: dict) -> str:
    """The whole result for readers."""
    about = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in about.items() if k not in ("cpu", "cores") and v)
    entries = result["networks"]
    lines = [
        "# Networks beside peers", "",
        f"Median milliseconds for 224x224 pictures, float32, {result['threads']} threads, the same weights everywhere.", "",
        table(entries), "",
        *(f"- Geometric mean of {key.replace('_', ' ')}: {value:.3f}" for key, value in result["geometric_mean"].items()),
        f"- Machine: {about['cpu']}, {about['cores']} cores; {versions}",
        f"- Peaks measured in the same run: {result['gflops']} GFLOP/s, {result['gbytes_per_second']} GB/s",
        f"- Candidates take turns; {fairness(entries)}", "",
    ]  # fmt: skip
    shares = [name for name in OURS if any(name in e["candidates"] for e in entries)]
    if shares:
        heads = ["network, batch", "ideal ms", *(f"{NAMES[n]}, share of ideal" for n in shares)]
        lines += ["## Share of the roofline", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for e in entries:
            cells = [f"{e['network']}, {e['batch']}", f"{e['ideal_ms']:.1f}"]
            cells += [f"{e['candidates'][n]['roofline_share']:.0%}" if n in e["candidates"] else "" for n in shares]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "Operations are counted as for direct convolution, so Winograd's may exceed its share.", ""]
    skipped = [f"- {e['network']}, {e['batch']}: {name}: {r}" for e in entries for name, r in e["skipped"].items()]
    return "\n".join([*lines, *(["## Skipped", "", *skipped, ""] if skipped else [])])


def fairness(entries: list[dict]) -> str:
    """What speaks for or against the figures: effect of the order, pools that did not rest, other processes."""
    order = [c["forwards_over_backwards"] for e in entries for c in e["candidates"].values()]
    known = [e["disturbance"] for e in entries if e["disturbance"] is not None]
    doubt = " (DOUBTFUL: measure again on an idle machine)" if known and max(known) > QUIET else ""
    return (
        f"medians of forward over backward rounds {min(order, default=1):.2f} to {max(order, default=1):.2f}; "
        f"{sum(e['restless'] for e in entries)} turns began before all threads slept; "
        f"other processes kept {f'{max(known):.2f}' if known else 'an unknown number of'} cores busy{doubt}"
    )


def plot(result: dict, path: Path) -> Path:
    """Bars of our time over the best peer's, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    entries = result["networks"]
    series = [(name, f"{name}/best_peer") for name in OURS if any(f"{name}/best_peer" in e["ratios"] for e in entries)]
    figure, axes = pyplot.subplots(figsize=(9, 3.5), layout="constrained")
    width = 0.8 / max(len(series), 1)
    for i, (name, key) in enumerate(series):
        places = [j + (i - (len(series) - 1) / 2) * width for j in range(len(entries))]
        bars = axes.bar(places, [e["ratios"].get(key, math.nan) for e in entries], width, label=NAMES[name])
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(entries)), [f"{e['network']}\nbatch {e['batch']}" for e in entries], fontsize=8)
    axes.set_ylabel("time / best peer's time")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
