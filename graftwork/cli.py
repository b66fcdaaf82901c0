"""The `graftwork` command."""

from __future__ import annotations

import difflib
import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import click

from . import __version__
from .errors import ConfigError, GraftworkError, PluginError
from .plugins import PluginWarning, add_commands, list_plugins


class _Group(click.Group):
    """The program: plugins' commands join it as it starts, and Graftwork's own errors become one sentence and exit status 1."""

    plugin_error: PluginError | None = None
    complete = False

    def main(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        # OpenMP's idle threads otherwise spin for milliseconds, which on a busy machine takes the cores from the work
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        if not self.complete:
            self._complete()
        return super().main(*args, **options)

    def _complete(self) -> None:
        """Plugins' commands. What is wrong with a plugin stops every command but the one that lists plugins."""
        self.complete = True
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", PluginWarning)
            try:
                add_commands(self)
            except PluginError as error:
                self.plugin_error = error
        for warning in caught:
            click.echo(f"graftwork: {warning.message}", err=True)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.plugin_error is not None and args[:1] != ["plugins"]:
            raise self.plugin_error
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GraftworkError as error:
            click.echo(f"graftwork: {error}", err=True)
            sys.exit(1)


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="graftwork")
def main() -> None:
    """Graftwork: pretrained networks, kernels and graphs, in the open."""


@main.command()
@click.option("-o", "--output", default="demo-report.html", show_default=True, help="The page to write.")
@click.option("--draws", default=5, show_default=True, help="Random draws of the labelled digits.")
def demo(output: str, draws: int) -> None:
    """A pretrained network learns handwritten digits from five examples each; writes a page with the pictures."""
    from .plugins.transfer.demo import run

    run(output, draws)


@main.group()
def zoo() -> None:
    """The networks that Graftwork knows."""


_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@zoo.command("list")
@click.option("--markdown", is_flag=True, help="Print the table of docs/zoo.md.")
@_JSON
def zoo_list(markdown: bool, as_json: bool) -> None:
    """All models, with their parameters' number and weights."""
    from .zoo import catalogue

    facts = catalogue.models()
    if as_json:
        click.echo(json.dumps(facts))
        return
    if markdown:
        click.echo(catalogue.markdown(facts), nl=False)
        return
    from rich.table import Table

    table = Table("model", "parameters", "input", "top-1", "top-5", "weights", "")
    for m in facts:
        weights = [w for w in m["weights"] if not w.endswith("_notop")]  # the same weights in a smaller file
        accuracy = [catalogue.percent(m[key]) for key in ("top1", "top5")]
        table.add_row(m["name"], f"{m['parameters']:,}", m["input"], *accuracy, ", ".join(weights) or "-", m["summary"])
    _console().print(table)


@zoo.command("info")
@click.argument("name")
@_JSON
def zoo_info(name: str, as_json: bool) -> None:
    """What is known of a model, and its layers."""
    from . import zoo as models
    from .zoo import catalogue

    entry = models.find(name)
    facts = catalogue.describe(entry)
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(f"{name}: {entry.summary}")
    for key, value in {"weights": entry.weights, **entry.info}.items():
        click.echo(f"  {key}: {value}")
    click.echo(f"  parameters: {facts['parameters']:,}\n{models.create(name)}")


@zoo.command("fetch")
@click.argument("name")
@click.option("--weights", default="imagenet", show_default=True, help="Which of the model's weights.")
@_JSON
def zoo_fetch(name: str, weights: str, as_json: bool) -> None:
    """Download a model's published weights, if they are not on this machine; print where they are."""
    from pathlib import Path

    from . import zoo as models
    from .zoo import fetch, registry

    file = models.find(name).file(weights)
    path = fetch.fetch(file) if file.published else Path(registry.__file__).parent / file.source
    if as_json:
        click.echo(json.dumps({"model": name, "weights": weights, "path": str(path), "bytes": path.stat().st_size}))
    else:
        click.echo(path)


@zoo.command("verify")
@click.argument("file", type=click.Path())
@click.option("--model", default=None, help="Also whether the weights fit this model of the zoo.")
@_JSON
def zoo_verify(file: str, model: str | None, as_json: bool) -> None:
    """Read a weights file as a whole: its layout and tensors, whether it is sound, and which published file it is."""
    from .zoo import catalogue

    found = catalogue.verify(file, model)
    if as_json:
        click.echo(json.dumps(found))
        return
    for key, value in found.items():
        text = f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, list) else value
        click.echo(f"{key}: {text if text not in (None, '') else '-'}")


@zoo.command("convert")
@click.argument("source", type=click.Path())
@click.argument("target", type=click.Path())
@click.option("--model", default=None, help="The network whose weights these are; .weights.h5 and packed need it.")
@click.option("--layout", default=None, type=click.Choice(("legacy", "weights.h5", "packed")),
              help="By default as TARGET's name says.")  # fmt: skip
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(("float32", "float16", "bfloat16")))
@click.option("--compress", is_flag=True, help="Pack tensors with gzip.")
@_JSON
def zoo_convert(source: str, target: str, model: str | None, layout: str | None, dtype: str, compress: bool,
                as_json: bool) -> None:  # fmt: skip
    """Write the weights in SOURCE as TARGET, in another layout, type or packing."""
    from .zoo import catalogue

    found = catalogue.convert(source, target, model, layout, dtype, "gzip" if compress else None)
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(f"wrote {target}: {found['layout']}, {found['tensors']} tensors, {found['bytes']:,} bytes "
                   f"({found['bytes'] / found['source_bytes']:.2f} of {source})")  # fmt: skip


@main.command()
def plugins() -> None:
    """Plugins that were found, their hooks, and what went wrong."""
    from rich.console import Console
    from rich.table import Table

    table = Table("plugin", "distribution", "version", "status", "hooks", "")
    for p in list_plugins():
        table.add_row(p.name, p.distribution, p.version, p.status, ", ".join(p.hooks), p.error or p.summary)
    Console().print(table)


@main.command()
@click.argument("model")
@click.option("--batch", default=1, show_default=True, help="Images at a time.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("-o", "--output", type=click.Path(), default=None, help="A table to add to, instead of this machine's own.")
def tune(model: str, batch: int, device: str, output: str | None) -> None:
    """Measure which kernel is fastest for each convolution of MODEL (on a GPU, each product too) and use those from now on."""
    from pathlib import Path

    import numpy as np
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from . import compile, cuda, no_grad, tensor, zoo
    from .nn import tune as measuring

    run: Callable[..., Any]
    keep: Callable[..., Path]
    if device == "cuda":
        if not cuda.is_available():
            raise click.ClickException(f"no GPU to tune for: {cuda.why_not()}")
        from .kernels.cuda.tuning import keep
        from .nn.tune_cuda import tune as run
    else:
        from .kernels.cpu.tuning import keep
        from .nn.tune import tune as run
    network = zoo.create(model)
    with no_grad():
        graph = compile(network).graph(tensor(np.zeros((batch, *network.input_shape), np.float32)))
    with Progress(transient=True) as bar:
        job = bar.add_task("timing convolutions" if device == "cpu" else "timing products and convolutions")
        choices = run(graph, lambda done, total: bar.update(job, completed=done, total=total))
    table = Table("convolution", "heuristic, us", "fastest", "us", "")
    for c in choices:
        table.add_row(c.key, f"{c.times[c.heuristic]:.1f}", c.best, f"{c.times[c.best]:.1f}", "new choice" if c.changed else "")
    path = keep(measuring.winners(choices), None if output is None else Path(output))
    Console().print(table)
    click.echo(f"{sum(c.changed for c in choices)} of {len(choices)} choices changed; kept in {path}")


@main.group()
def kernels() -> None:
    """The kernels behind the ops."""


@kernels.command("list")
@click.option("--op", default=None, help="Only this op.")
@click.option("--device", default=None, help='Only this device ("cpu" or "cuda").')
def kernels_list(op: str | None, device: str | None) -> None:
    """Every op's kernels by device and variant, the preferred one first."""
    from rich.console import Console
    from rich.table import Table

    from .kernels import list as list_kernels

    found = list_kernels(op, device)
    if not found:
        known = sorted({entry.op for entry in list_kernels()})
        close = difflib.get_close_matches(op or "", known, n=3)
        raise ConfigError(
            f"no kernel for op {op or 'any'!r} on device {device or 'any'!r}; "
            + (f"did you mean {' or '.join(close)}?" if close else "`graftwork kernels list` shows all")
        )
    table = Table("op", "device", "variant", "dtypes")
    for entry in found:
        table.add_row(entry.op, entry.device, entry.variant, ", ".join(entry.dtypes or ("any",)))
    Console().print(table)


def _replayable(name: str, batch: int, weights: str | None) -> tuple[Any, list]:
    """A zoo network in inference as an executable, and images of random numbers for it."""
    import numpy as np

    from . import compile, no_grad, tensor
    from . import zoo as models

    model = models.create(name, weights=weights)
    shape = getattr(model, "input_shape", None)
    if shape is None:
        raise ConfigError(f"{name} does not say what its input is; give it an input_shape of (height, width, channels)")
    x = np.random.default_rng(0).random((batch, *shape), np.float32)
    with no_grad():
        return compile(model).executable(tensor(x)), [x]


def _console() -> Any:
    """As wide as the terminal; wide enough for a line a node where the output goes to a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or os.environ.get("COLUMNS") else Console(width=200)


_MODEL = click.argument("model")
_BATCH = click.option("--batch", default=1, show_default=True, type=click.IntRange(min=1), help="Images at once.")
_WEIGHTS = click.option("--weights", default=None, help="A published name or an HDF5 file; random weights by default.")


@main.command()
@_MODEL
@_BATCH
@_WEIGHTS
@click.option("--html", default=None, type=click.Path(), help="Draw the graph, with times and memory, into this file.")
@click.option("--text", is_flag=True, help="The whole graph as text, with weights and what is computed ahead.")
@_JSON
def graph(model: str, batch: int, weights: str | None, html: str | None, text: bool, as_json: bool) -> None:
    """The optimised graph of a network of the zoo: a line a node, and the memory plan."""
    from .nn import profiling
    from .nn.files import require_writable

    if html is not None:
        require_writable(html)
    executable, inputs = _replayable(model, batch, weights)
    found = profiling.describe(executable)
    if html is not None:
        from .nn.graph_page import page

        page(executable, html, {row.node: row.nanoseconds for row in profiling.profile(executable, inputs, 5)})
    if as_json:
        click.echo(json.dumps({"model": model, "batch": batch, **found}))
        return
    if text:
        click.echo(str(executable.graph))
    else:
        _print_graph(executable, found)
    memory = found["memory"]
    click.echo(
        f"{len(found['nodes'])} ops a call, {found['ahead_ops']} computed ahead; {found['states']} weights and state tensors "
        f"of {memory['state']:,} bytes, computed ahead {memory['ahead']:,}\n"
        f"arena {memory['arena']:,} bytes, {memory['arena_over_bound']:.3f} of the lower bound {memory['lower_bound']:,}; "
        f"inputs {memory['inputs']:,}, outputs {memory['outputs']:,}"
    )
    if html is not None:
        click.echo(f"wrote {html}")


def _print_graph(executable: Any, found: dict) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("node", no_wrap=True, overflow="ellipsis")
    for title, style in (("output", "cyan"), ("kernel", "green")):
        table.add_column(title, no_wrap=True, style=style, min_width=max((len(n[title]) for n in found["nodes"]), default=0))
    table.add_column("line", no_wrap=True, overflow="ellipsis", style="dim", max_width=60)
    for node in found["nodes"]:
        table.add_row(*(Text(node[column]) for column in ("text", "output", "kernel", "line")))
    console = _console()
    signature = ", ".join(f"{v.name}: {v.spec}" for v in executable.graph.inputs)
    console.print(Text(f"{executable.graph.name}({signature})", "bold"))
    console.print(table)


@main.command()
@_MODEL
@_BATCH
@_WEIGHTS
@click.option("--repeat", default=20, show_default=True, type=click.IntRange(min=1), help="Replays to take medians of.")
@_JSON
def profile(model: str, batch: int, weights: str | None, repeat: int, as_json: bool) -> None:
    """Where the time of a network of the zoo goes: a line a kernel, the total, and the machine's roofline."""
    from .nn import profiling

    executable, inputs = _replayable(model, batch, weights)
    found = profiling.summary(profiling.profile(executable, inputs, repeat))
    if as_json:
        click.echo(json.dumps({"model": model, "batch": batch, "repeat": repeat, **found}))
    else:
        _print_profile(found)


def _print_profile(found: dict) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for title, style in (("op", ""), ("kernel", "green"), ("output", "cyan")):
        table.add_column(title, no_wrap=True, style=style)
    for title in ("us", "GFLOP/s", "GB/s", "share", "of roof"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("line", no_wrap=True, overflow="ellipsis", style="dim")
    for k in found["kernels"]:
        numbers = [f"{k[name]:.1f}" for name in ("us", "gflops", "gbytes")] + [f"{k['share']:.1%}", f"{k['roofline']:.0%}"]
        table.add_row(k["op"], Text(k["kernel"]), Text(k["output"]), *numbers, Text(k["line"]))
    _console().print(table)
    peak = found["peak"]
    click.echo(
        f"total {found['us'] / 1e3:.3f} ms in {len(found['kernels'])} kernels: {found['gflop']:.2f} GFLOP, "
        f"{found['gflops']:.1f} GFLOP/s\n"
        f"roof {found['ideal_us'] / 1e3:.3f} ms at {peak['gflops']:.0f} GFLOP/s and {peak['gbytes']:.1f} GB/s, measured now: "
        f"{found['roofline']:.0%} of it is reached (over 100% is possible: Winograd's convolutions compute less than is "
        "counted, and caches are faster than memory)"
    )


if __name__ == "__main__":
    main()
