"""The `graftwork` command."""

from __future__ import annotations

import difflib
import os
import sys
import warnings
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


@zoo.command("list")
def zoo_list() -> None:
    """All models, with their parameters' number and weights."""
    from rich.console import Console
    from rich.table import Table

    from . import zoo as models

    table = Table("model", "parameters", "input", "weights", "")
    for name in models.list_models():
        entry = models.find(name)
        count, shape = entry.info.get("parameters"), entry.info.get("input_shape", ())
        if count is None or not shape:  # not declared, so the network is built to be asked
            model = entry.factory(include_top=True, pooling=None)
            count, shape = model.count_parameters(), getattr(model, "input_shape", ())
        weights = [w for w in entry.weights if not w.endswith("_notop")]  # the same weights in a smaller file
        table.add_row(name, f"{count:,}", "x".join(map(str, shape)), ", ".join(weights) or "-", entry.summary)
    Console().print(table)


@zoo.command("info")
@click.argument("name")
def zoo_info(name: str) -> None:
    """What is known of a model, and its layers."""
    from . import zoo as models

    entry = models.find(name)
    model = models.create(name)
    click.echo(f"{name}: {entry.summary}")
    for key, value in {"weights": entry.weights, **entry.info}.items():
        click.echo(f"  {key}: {value}")
    click.echo(f"  parameters: {model.count_parameters():,}\n{model}")


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
@click.option("-o", "--output", type=click.Path(), default=None, help="A table to add to, instead of this machine's own.")
def tune(model: str, batch: int, output: str | None) -> None:
    """Measure which kernel is fastest for each convolution of MODEL, and use those from now on."""
    from pathlib import Path

    import numpy as np
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from . import compile, no_grad, tensor, zoo
    from .kernels.cpu import tuning
    from .nn import tune as measuring

    network = zoo.create(model)
    with no_grad():
        graph = compile(network).graph(tensor(np.zeros((batch, *network.input_shape), np.float32)))
    with Progress(transient=True) as bar:
        job = bar.add_task("timing convolutions")
        choices = measuring.tune(graph, lambda done, total: bar.update(job, completed=done, total=total))
    table = Table("convolution", "heuristic, us", "fastest", "us", "")
    for c in choices:
        table.add_row(c.key, f"{c.times[c.heuristic]:.1f}", c.best, f"{c.times[c.best]:.1f}", "new choice" if c.changed else "")
    path = tuning.keep(measuring.winners(choices), None if output is None else Path(output))
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


if __name__ == "__main__":
    main()
