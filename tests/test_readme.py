"""What README.md promises: its Python runs, its commands exist, its files are there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click
import numpy as np
import pytest

from graftwork import nn

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch, shared_data):
    """A working folder with the files that the examples name."""
    from PIL import Image

    shutil.copy(shared_data / "keras-models" / "tiny_XCEPTION_KDEF.hdf5", tmp_path / "model.keras")
    Image.new("L", (40, 40)).save(tmp_path / "a-letter.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_examples_run(folder, capsys):
    names: dict = {}
    exec(PYTHON[0], names)
    assert "-0.02" in capsys.readouterr().out, "the gradient of silu(1 * 0.5 - 2 * 1) at -1.5 times 0.5"
    rng = np.random.default_rng(0)
    images, labels = rng.random((12, 32, 32, 3)).astype(np.float32), np.arange(12) % 10
    names.update(images=images, labels=labels, checks=[(names["gw"].tensor(images), names["gw"].tensor(labels))])
    names["model"] = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GlobalAvgPool2d(), nn.Linear(4, 10))
    exec(PYTHON[1], names)
    assert names["trainer"].epoch == 10 and (folder / "run.h5").is_file()
    names["x"] = names["gw"].tensor(images)
    names["model"].eval()
    exec(PYTHON[2], names)
    assert "conv2d" in capsys.readouterr().out and (folder / "graph.html").is_file()
    target = names["gw"].tensor(labels)
    names["optimizer"].lr = 0.05  # the cycle of the example above has ended near zero
    losses = [names["step"](names["x"], target).item() for _ in range(3)]
    assert losses[2] < losses[0]
    assert len(PYTHON) == 3, "a new example needs its line here"


def test_commands_exist():
    from graftwork.cli import main

    main.main(["--version"], standalone_mode=False)  # plugins' commands have joined
    called = re.findall(r"^graftwork ([a-z ]+?)(?: [^a-z\n].*| \w+[./].*|)$", TEXT, re.MULTILINE)
    called += re.findall(r"`graftwork ([a-z]+(?: [a-z]+)?)[ `]", TEXT)
    assert len(called) >= 6
    for words in called:
        command: click.Command = main
        for word in words.split():
            if not isinstance(command, click.Group):
                break  # an argument
            assert word in command.commands, words
            command = command.commands[word]


def test_files_and_make_targets_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert "://" in link or (ROOT / link).exists(), link
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\S+)", TEXT, re.MULTILINE)) <= targets
    for module in re.findall(r"python -m (bench[.\w]*)", TEXT):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file() or (ROOT / module).is_dir()
    assert "@" not in re.sub(r"`[^`]*`|```.*?```", "", TEXT, flags=re.DOTALL), "a placeholder"
