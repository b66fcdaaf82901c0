"""Fixtures for the plugin tests: distributions made by hand, and managers that see only these."""

from __future__ import annotations

import importlib
import sys
import textwrap

import pytest

from graftwork.plugins.manager import PluginManager

GROUP = "graftwork_under_test"  # not the real group: what happens to be installed must not change these tests


@pytest.fixture(autouse=True)
def no_switches(monkeypatch):
    monkeypatch.delenv("GRAFTWORK_STRICT_PLUGINS", raising=False)
    monkeypatch.delenv("GRAFTWORK_DISABLE_PLUGINS", raising=False)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(name, source): put a plugin module and its distribution on sys.path, as pip would."""
    modules = []
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name, source, *, module=None, distribution=None, version="1.0", target=None, write=True):
        module = module or f"plugin_{name}"
        distribution = distribution or f"dist-{name}"
        text = "from graftwork.plugins import hookimpl\n" + textwrap.dedent(source)
        if write:
            (tmp_path / f"{module}.py").write_text(text)
        folder = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nSummary: of {name}\n"
        )
        (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {target or module}\n")
        modules.append(module)
        importlib.invalidate_caches()
        return folder

    yield install
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def new_manager():
    """new_manager(sinks=None, bundled=()): a manager that searches the tests' own entry-point group."""

    def make(sinks=None, bundled=()):
        return PluginManager(sinks, bundled, GROUP)

    return make
