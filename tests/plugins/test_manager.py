"""The plugin manager: discovery, isolation, conflicts, taking back."""

from __future__ import annotations

import subprocess
import sys
import threading
import tomllib
import types
import warnings
from pathlib import Path

import click
import pytest

from graftwork import plugins
from graftwork.errors import ConfigError, PluginError
from graftwork.plugins import PluginConflict, PluginWarning, hookimpl
from graftwork.plugins.manager import BUNDLED, PluginInfo, Registrar, Table, manager

ROOT = Path(__file__).parents[2]

MODEL = """
    'Summary line.'
    @hookimpl
    def register_models(register):
        register({name!r}, dict, summary="s")
"""


def model(name):
    return MODEL.format(name=name)


def status(m):
    return {info.name: info.status for info in m.list_plugins()}


class Models:
    """A plugin as an object: registers models of the given names."""

    def __init__(self, *names):
        self.names = names

    @hookimpl
    def register_models(self, register):
        for name in self.names:
            register(name, dict)


# Discovery


def test_an_installed_plugin_is_found_and_described(install, new_manager):
    install("alpha", model("net"), version="2.5")
    m = new_manager()
    assert not m.tables["model"].entries, "nothing may load before load()"
    m.load()
    assert m.tables["model"].entries["net"].value is dict
    assert m.tables["model"].entries["net"].info == {"summary": "s"}
    (info,) = m.list_plugins()
    assert info == PluginInfo("alpha", "dist-alpha", "2.5", "of alpha", ("register_models",), "loaded", "")


def test_the_summary_is_the_first_line_of_the_docstring(new_manager):
    m = new_manager()
    module = types.ModuleType("with_doc", "One line.\n\nMore.")
    assert m.register(module, "documented").summary == "One line."


def test_a_class_is_instantiated(install, new_manager):
    install(
        "alpha",
        """
        class Plugin:
            @hookimpl
            def register_models(self, register):
                register("net", self)
        """,
        target="plugin_alpha:Plugin",
    )
    m = new_manager()
    m.load()
    assert type(m.tables["model"].entries["net"].value).__name__ == "Plugin"


def test_loading_twice_registers_once(install, new_manager):
    install("alpha", model("net"))
    m = new_manager()
    m.load()
    m.load()
    assert len(m.list_plugins()) == 1


def test_bundled_plugins_are_found_without_metadata(new_manager):
    m = new_manager(bundled=("transfer",))
    m.load(strict=True)
    (info,) = m.list_plugins()
    assert (info.name, info.distribution, info.status) == ("transfer", "graftwork", "loaded")


def test_bundled_plugins_are_not_registered_twice(install, new_manager):
    install("transfer", "", distribution="graftwork", version="9.9", target="graftwork.plugins.transfer", write=False)
    m = new_manager(bundled=("transfer",))
    m.load(strict=True)
    (info,) = m.list_plugins()
    assert info.version == "9.9"


def test_bundled_names_stand_in_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["graftwork"] == {name: f"graftwork.plugins.{name}" for name in BUNDLED}


def test_ours_load_first_then_by_distribution(install, new_manager):
    install("zeta", model("z"), distribution="a-dist")
    install("alpha", model("a"), distribution="b-dist")
    install("ours", model("o"), distribution="graftwork")
    m = new_manager()
    m.load()
    assert list(m.tables["model"].entries) == ["o", "z", "a"]


def test_damaged_metadata_does_not_hide_a_plugin(install, new_manager):
    folder = install("alpha", model("net"))
    (folder / "METADATA").unlink()
    m = new_manager()
    m.load(strict=True)
    assert status(m) == {"alpha": "loaded"}


@pytest.mark.parametrize("spelling", ["my_alpha", "My-Alpha", " other, my-alpha "])
def test_a_disabled_plugin_is_not_imported(install, new_manager, monkeypatch, spelling):
    install("my-alpha", "raise RuntimeError('imported')", module="plugin_alpha")
    monkeypatch.setenv("GRAFTWORK_DISABLE_PLUGINS", spelling)
    m = new_manager()
    m.load(strict=True)
    assert status(m) == {"my-alpha": "disabled"}
    assert "plugin_alpha" not in sys.modules


# Isolation

BROKEN = {
    "import": ("import a_module_that_does_not_exist", "ModuleNotFoundError"),
    "syntax": ("def f(:", "SyntaxError"),
    "exit": ("raise SystemExit('bye')", "SystemExit: bye"),
    "hook": ("@hookimpl\ndef register_models(register):\n    register('half', 1)\n    1 / 0", "ZeroDivisionError"),
    "argument": ("@hookimpl\ndef fit_start(trainr):\n    pass", "trainr"),
    "no name": ("@hookimpl\ndef register_models(register):\n    register('', 1)", "non-empty string"),
    "no op": ("@hookimpl\ndef register_ops(register):\n    register(3)", "non-empty string"),
}


@pytest.mark.parametrize("source, reason", BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_skipped_with_a_warning(install, new_manager, source, reason):
    install("broken", source, version="0.3")
    install("sound", model("net"))
    m = new_manager()
    with pytest.warns(PluginWarning) as caught:
        m.load()
    (warning,) = caught
    for part in ("plugin 'broken'", "dist-broken 0.3", reason, "GRAFTWORK_DISABLE_PLUGINS=broken"):
        assert part in str(warning.message) or (part == "GRAFTWORK_DISABLE_PLUGINS=broken" and reason == "non-empty string")
    assert status(m) == {"broken": "failed", "sound": "loaded"}
    assert list(m.tables["model"].entries) == ["net"], "a failed plugin must leave nothing behind"
    assert not m.hook.fit_start.get_hookimpls()


@pytest.mark.parametrize("source, reason", BROKEN.values(), ids=BROKEN)
def test_strict_mode_raises(install, new_manager, source, reason):
    install("broken", source)
    m = new_manager()
    with pytest.raises(PluginError, match="dist-broken 1.0") as caught:
        m.load(strict=True)
    assert reason in str(caught.value)


def test_strict_mode_by_environment(install, new_manager, monkeypatch):
    install("broken", "raise ValueError('boom')")
    monkeypatch.setenv("GRAFTWORK_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match="boom"):
        new_manager().load()
    monkeypatch.setenv("GRAFTWORK_STRICT_PLUGINS", "0")
    with pytest.warns(PluginWarning, match="boom"):
        new_manager().load()


def test_strict_after_a_lenient_load_still_raises_and_warnings_come_once(install, new_manager):
    install("broken", "raise ValueError('boom')")
    m = new_manager()
    with pytest.warns(PluginWarning):
        m.load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m.load()
    with pytest.raises(PluginError, match="boom"):
        m.load(strict=True)


def test_the_message_names_the_plugins_own_line(install, new_manager):
    install("broken", "\n\nraise ValueError('boom')")
    m = new_manager()
    assert "(plugin_broken.py, line 4)" in m.list_plugins()[0].error


def test_listing_never_raises_and_the_warning_still_comes(install, new_manager):
    install("one", model("net"))
    install("two", model("net"))
    install("broken", "raise ValueError('boom')")
    m = new_manager()
    assert status(m) == {"broken": "failed", "one": "loaded", "two": "failed"}
    with pytest.raises(PluginConflict), pytest.warns(PluginWarning, match="boom"):
        m.load()


def test_warnings_as_errors_leave_the_other_plugins_loaded(install, new_manager):
    install("broken", "raise ValueError('boom')", distribution="a")
    install("sound", model("net"), distribution="b")
    m = new_manager()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PluginWarning):
            m.load()
    assert "net" in m.tables["model"].entries


def test_a_hook_name_without_the_decorator_is_remarked(install, new_manager):
    install("alpha", "def fit_end(trainer):\n    pass")
    m = new_manager()
    with pytest.warns(PluginWarning, match="fit_end without @hookimpl"):
        m.load()


# Conflicts


def test_an_unknown_hook_is_an_error_with_a_suggestion(install, new_manager):
    install("alpha", "@hookimpl\ndef fit_strat(trainer):\n    pass")
    install("sound", model("net"))
    m = new_manager()
    with pytest.raises(PluginConflict, match=r"'alpha' \(dist-alpha 1.0\).*'fit_strat'.*Did you mean 'fit_start'"):
        m.load()
    assert status(m) == {"alpha": "failed", "sound": "loaded"}
    with pytest.raises(PluginConflict):
        m.load()  # not only the first caller learns of it


def test_an_optional_unknown_hook_is_allowed(install, new_manager):
    install("alpha", "@hookimpl(optionalhook=True)\ndef of_a_later_version(x):\n    pass\n" + "")
    m = new_manager()
    m.load(strict=True)
    assert status(m) == {"alpha": "loaded"}


def test_a_name_that_two_plugins_register_names_both(install, new_manager):
    install("one", model("net"), version="1.1")
    install("two", model("net"), version="2.2")
    m = new_manager()
    with pytest.raises(PluginConflict) as caught:
        m.load()
    for part in ("model 'net'", "plugin 'one' (dist-one 1.1)", "plugin 'two' (dist-two 2.2)", "DISABLE_PLUGINS=two"):
        assert part in str(caught.value)
    assert m.tables["model"].entries["net"].owner.name == "one"


@pytest.mark.parametrize(
    "hook, call",
    [
        ("register_ops", "register(types.SimpleNamespace(name='same'))"),
        ("register_kernels", "register('same', 'cpu', 'fast', len)"),
        ("register_modules", "register('same', dict)"),
        ("register_models", "register('same', dict)"),
        ("register_passes", "register('same', len)"),
    ],
)
def test_every_table_sees_duplicates(install, new_manager, hook, call):
    source = f"import types\n@hookimpl\ndef {hook}(register):\n    {call}\n"
    install("one", source)
    install("two", source)
    with pytest.raises(PluginConflict, match=r"'same.*plugin 'one'.*plugin 'two'"):
        new_manager().load()


def test_two_distributions_with_a_plugin_of_one_name(install, new_manager):
    install("same", model("a"), module="plugin_a", distribution="dist-a")
    install("same", model("b"), module="plugin_b", distribution="dist-b")
    m = new_manager()
    with pytest.raises(PluginConflict, match=r"plugin 'same'.*dist-a 1.0.*dist-b 1.0"):
        m.load()
    assert list(m.tables["model"].entries) == ["a"]


def test_a_kernel_may_have_several_variants(new_manager):
    class Kernels:
        @hookimpl
        def register_kernels(self, register):
            register("relu", "cpu", "a", len)
            register("relu", "cpu", "b", len, dtypes=("float32",))

    m = new_manager()
    m.register(Kernels(), "kernels")
    assert list(m.tables["kernel"].entries) == ["relu/cpu/a", "relu/cpu/b"]
    assert m.tables["kernel"].entries["relu/cpu/b"].info["dtypes"] == ("float32",)


# Sinks, and taking back


def test_entries_reach_their_sink_and_leave_it(new_manager):
    live = {}

    def sink(entry):
        live[entry.name] = entry.value
        return lambda: live.pop(entry.name)

    m = new_manager({"model": sink})
    plugin = Models("a", "b")
    with m.registered(plugin, "models"):
        assert set(live) == {"a", "b"}
        assert m.list_plugins()[0].name == "models"
    assert not live and not m.tables["model"].entries and not m.list_plugins()
    m.register(plugin, "models")
    assert m.unregister("models") is plugin


def test_a_refusal_by_a_sink_takes_back_what_was_connected(new_manager):
    live = []

    def sink(entry):
        if entry.name == "bad":
            raise ConfigError("exists already")
        live.append(entry.name)
        return lambda: live.remove(entry.name)

    m = new_manager({"model": sink})
    with pytest.raises(PluginConflict, match=r"model 'bad' is registered twice: by graftwork itself and by plugin 'models'"):
        m.register(Models("good", "bad"), "models")
    assert not live and not m.tables["model"].entries


def test_another_error_in_a_sink_names_the_entry(new_manager):
    def sink(entry):
        raise TypeError("not a factory")

    with pytest.raises(PluginError, match=r"plugin 'models'.*model 'a' that was refused: TypeError: not a factory"):
        new_manager({"model": sink}).register(Models("a"), "models")


def test_unregistering_an_unknown_plugin_suggests(new_manager):
    m = new_manager()
    m.register(Models(), "models")
    with pytest.raises(PluginError, match="Did you mean 'models'"):
        m.unregister("model")


def test_registered_takes_back_after_an_error(new_manager):
    m = new_manager()
    with pytest.raises(ZeroDivisionError), m.registered(Models("a"), "models"):
        raise ZeroDivisionError
    assert not m.list_plugins()


def test_registering_a_name_twice(new_manager):
    m = new_manager()
    m.register(Models(), "models")
    with pytest.raises(PluginConflict, match="plugin 'models' is registered twice"):
        m.register(Models(), "models")


def test_table_and_registrar():
    table, first, second = Table("op"), PluginInfo("one", "d", "1"), PluginInfo("two")
    Registrar(table, first)("x", 1, extra=2)
    with pytest.raises(PluginConflict, match=r"op 'x' .*plugin 'one' \(d 1\).*plugin 'two' \(no distribution\)"):
        Registrar(table, second)("x", 2)
    assert [e.info for e in table.of("one")] == [{"extra": 2}]
    table.withdraw("one")
    assert not table.entries


# The tables of the framework


def test_models_reach_the_zoo():
    from graftwork import zoo

    with plugins.registered(Models("a_plugins_model"), "models"):
        assert "a_plugins_model" in zoo.list_models()
        assert plugins.table("model")["a_plugins_model"] is dict
    assert "a_plugins_model" not in zoo.list_models()


def test_kernels_reach_the_registry():
    from graftwork import kernels

    def odd_relu(x, *, out):
        out[...] = x

    class Kernels:
        @hookimpl
        def register_kernels(self, register):
            register("relu", "cpu", "odd", odd_relu)

    with plugins.registered(Kernels(), "odd"):
        assert kernels.get("relu", "cpu", "odd") is odd_relu
        assert kernels.get("relu", "cpu") is not odd_relu
    assert "odd" not in {entry.variant for entry in kernels.list("relu")}


def test_a_kernel_that_exists_already_is_a_conflict():
    from graftwork import kernels

    class Kernels:
        @hookimpl
        def register_kernels(self, register):
            register("relu", "cpu", "reference", len)

    before = kernels.get("relu", "cpu", "reference")
    with pytest.raises(PluginConflict, match="kernel 'relu/cpu/reference'.*graftwork itself"):
        plugins.register(Kernels(), "thief")
    assert kernels.get("relu", "cpu", "reference") is before


# Commands


class Commands:
    def __init__(self, name):
        self.name = name

    @hookimpl
    def register_commands(self, cli):
        @cli.command(self.name)
        def hello():
            click.echo("hello")


def test_commands_are_added_and_run(new_manager):
    from click.testing import CliRunner

    m, cli = new_manager(), click.Group()
    m.register(Commands("hello"), "greeter")
    m.add_commands(cli, click.Group)
    assert CliRunner().invoke(cli, ["hello"]).output == "hello\n"


def test_a_command_that_exists_already_is_a_conflict(new_manager):
    m, cli = new_manager(), click.Group()
    mine = cli.command("zoo")(lambda: None)
    m.register(Commands("zoo"), "greeter")
    with pytest.raises(PluginConflict, match=r"command 'zoo'.*plugin 'graftwork' \(built in\).*plugin 'greeter'"):
        m.add_commands(cli, click.Group)
    assert cli.commands["zoo"] is mine


def test_a_failing_command_hook_does_not_take_the_program_down(new_manager, monkeypatch):
    class Broken:
        @hookimpl
        def register_commands(self, cli):
            raise OSError("no terminal")

    m, cli = new_manager(), click.Group()
    m.register(Broken(), "broken")
    m.register(Commands("hello"), "greeter")
    with pytest.warns(PluginWarning, match="'broken'.*no terminal"):
        m.add_commands(cli, click.Group)
    assert list(cli.commands) == ["hello"]
    monkeypatch.setenv("GRAFTWORK_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match="no terminal"):
        m.add_commands(click.Group(), click.Group)


# Threads, re-entrance, weight


def test_one_manager_for_all_threads(monkeypatch):
    monkeypatch.setattr(sys.modules["graftwork.plugins.manager"], "_manager", None)
    barrier, seen = threading.Barrier(8), []

    def ask():
        barrier.wait()
        seen.append(manager())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8 and len(set(map(id, seen))) == 1


def test_threads_wait_until_everything_is_loaded(install, new_manager):
    install("slow", "import time\ntime.sleep(0.2)\n" + "@hookimpl\ndef register_models(register):\n    register('net', 1)")
    m, barrier, seen = new_manager(), threading.Barrier(4), []

    def ask():
        barrier.wait()
        m.load()
        seen.append(list(m.tables["model"].entries))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [["net"]] * 4


def test_a_plugin_may_ask_for_loading_while_it_loads(install, new_manager, monkeypatch):
    m = new_manager()
    monkeypatch.setattr(sys, "manager_under_test", m, raising=False)
    install("alpha", "import sys\nsys.manager_under_test.load()\n")
    m.load(strict=True)
    assert status(m) == {"alpha": "loaded"}


def test_importing_does_not_load_and_stays_light():
    code = (
        "import sys, graftwork.plugins; from graftwork.plugins import manager; assert manager._manager is None; "
        "heavy = ('importlib.metadata', 'click', 'numba', 'difflib', 'graftwork.zoo', 'graftwork.plugins.transfer'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    preload = "import numpy, pluggy, sys; [sys.modules.pop(m, None) for m in ('importlib.metadata', 'difflib')]; "
    result = subprocess.run(
        [sys.executable, "-c", preload + code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "[]"
