"""The command: every sub-command on real digits; what is wrong is one sentence and exit status 1."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import graftwork as gw
from graftwork import errors, kernels, plugins, zoo
from graftwork.cli import main
from graftwork.plugins import PluginWarning, hookimpl
from graftwork.zoo import fetch


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], env={"COLUMNS": "200"})


def succeed(*arguments) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refuse(*arguments) -> str:
    """The one line on the error output of a call that fails."""
    result = run(*arguments)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("graftwork: "), result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Real handwritten digits as PNG files: train and validation, three classes."""
    pytest.importorskip("sklearn")
    from PIL import Image
    from sklearn.datasets import load_digits

    data, root = load_digits(), tmp_path_factory.mktemp("digits")
    for label in (0, 3, 6):
        for i, place in enumerate(np.flatnonzero(data.target == label)[:20]):
            folder = root / ("train" if i < 12 else "validation") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(data.images[place] * (255 / 16)).astype(np.uint8)).save(folder / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def classifier(digits, tmp_path_factory):
    """A classifier that the command wrote, and what the command said."""
    path = tmp_path_factory.mktemp("classifier") / "digits.h5"
    return path, succeed("transfer", "fit", digits, "--model", "glyphnet", "-C", "0.1", "-o", path)


# General


def test_version_and_help():
    assert gw.__version__ in succeed("--version")
    text = succeed("--help")
    for command in ("demo", "kernels", "plugins", "transfer", "zoo"):
        assert f"\n  {command} " in text
    for group in (("transfer",), ("zoo",), ("kernels",), ("transfer", "fit")):
        assert "Usage:" in succeed(*group, "--help")


def test_usage_errors_are_clicks(tmp_path):
    assert run("nonsense").exit_code == 2
    assert run("transfer", "fit", tmp_path).exit_code == 2  # no -o


def test_as_a_process(tmp_path):
    command = [sys.executable, "-m", "graftwork.cli"]
    result = subprocess.run([*command, "zoo", "info", "resnet2"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr == f"graftwork: {_message('resnet2')}\n"


def _message(name):
    with pytest.raises(errors.ModelNotFound) as caught:
        zoo.find(name)
    return caught.value


# zoo, kernels


def test_zoo_list_names_every_model():
    text = succeed("zoo", "list")
    assert all(name in text for name in zoo.list_models())
    assert "160,863" in text and "32x32x1" in text


def test_zoo_info_gives_numbers_and_layers():
    text = succeed("zoo", "info", "squeezenet1_1")
    assert "parameters: 1,235,496" in text and "fire9" in text and "top1: 56.3" in text
    assert "did you mean squeezenet1_1 or squeezenet1_0?" in refuse("zoo", "info", "squeezenet")


# zoo: weights files


@pytest.fixture
def no_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GRAFTWORK_WEIGHTS", raising=False)
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    monkeypatch.setattr(fetch, "url", lambda file: f"http://127.0.0.1:9/{file.filename}")  # nobody listens there


def test_zoo_list_as_json_and_markdown():
    facts = {m["name"]: m for m in json.loads(succeed("zoo", "list", "--json"))}
    assert set(facts) == set(zoo.list_models()) and facts["resnet50"]["top1"] == 74.928
    assert facts["vgg16"]["weights"]["imagenet"]["hash"] == "md5:64373286793e3c8b2b4e3219cbf3544b"
    table = succeed("zoo", "list", "--markdown")
    assert "| `resnet50` | 25,636,712 | 224x224x3 | 74.9 | 92.1 | `imagenet` | MIT |\n" in table
    assert json.loads(succeed("zoo", "info", "vgg16", "--json")) == facts["vgg16"]


def test_the_table_in_the_documentation_is_this_one():
    page = (Path(__file__).parents[1] / "docs" / "zoo.md").read_text()
    assert succeed("zoo", "list", "--markdown") in page, "put the output of `graftwork zoo list --markdown` into docs/zoo.md"


def test_zoo_fetch(no_downloads):
    path = succeed("zoo", "fetch", "glyphnet", "--weights", "glyphs").strip()
    assert Path(path).name == "glyphnet.h5"
    text = refuse("zoo", "fetch", "resnet50")
    assert "could not be fetched" in text and "resnet50_weights_tf_dim_ordering_tf_kernels.h5" in text
    assert "no weights named 'imagenet'; named ones: 'glyphs'" in refuse("zoo", "fetch", "glyphnet")


def test_zoo_verify(tmp_path):
    path = succeed("zoo", "fetch", "glyphnet", "--weights", "glyphs").strip()
    found = json.loads(succeed("zoo", "verify", path, "--model", "glyphnet", "--json"))
    assert (found["layout"], found["fits"], found["dtypes"], found["tensors"]) == ("legacy", "glyphnet", ["float32"], 82)
    assert "md5: " in succeed("zoo", "verify", path)
    other = run("zoo", "verify", path, "--model", "resnet20")
    assert other.exit_code == 1 and "does not fit ResNetCifar" in other.stderr and "2 mismatched" in other.stderr
    (tmp_path / "half.h5").write_bytes(Path(path).read_bytes()[:100_000])
    assert "damaged or truncated" in refuse("zoo", "verify", tmp_path / "half.h5")
    assert "no weights file" in refuse("zoo", "verify", tmp_path / "none.h5")


def test_zoo_convert(tmp_path):
    path = succeed("zoo", "fetch", "glyphnet", "--weights", "glyphs").strip()
    new, old = tmp_path / "g.weights.h5", tmp_path / "g.h5"
    options = ("--model", "glyphnet", "--dtype", "bfloat16", "--compress")
    assert "weights.h5, 82 tensors" in succeed("zoo", "convert", path, new, *options)
    found = json.loads(succeed("zoo", "convert", path, old, "--dtype", "float16", "--json"))
    assert found["tensors"] == 82 and found["bytes"] < 0.65 * found["source_bytes"]
    for file, kind in ((new, "bfloat16"), (old, "float16")):
        assert json.loads(succeed("zoo", "verify", file, "--model", "glyphnet", "--json"))["dtypes"] == [kind]
    assert "give the model" in refuse("zoo", "convert", path, tmp_path / "x.weights.h5")
    assert "does not exist" in refuse("zoo", "convert", path, tmp_path / "no" / "x.h5")
    assert "newer layout" in refuse("zoo", "convert", path, tmp_path / "x.h5", "--dtype", "bfloat16")


def test_kernels_list_has_every_entry():
    lines = [line for line in succeed("kernels", "list").splitlines() if line.startswith("│")]
    rows = [line for line in lines if line[1:].split("│")[0].strip()]  # a long list of dtypes goes on in a line below
    assert len(rows) == len(kernels.list())
    conv = succeed("kernels", "list", "--op", "conv2d", "--device", "cpu")
    assert all(e.variant in conv for e in kernels.list("conv2d", "cpu")) and "matmul" not in conv


def test_kernels_list_of_nothing():
    assert "did you mean conv2d" in refuse("kernels", "list", "--op", "conv2")
    assert "no kernel for op 'any' on device 'tpu'" in refuse("kernels", "list", "--device", "tpu")


# plugins


class Extra:
    """A plugin with a command of its own."""

    @hookimpl
    def register_commands(self, cli):
        @cli.command("extra-command")
        def extra():
            print("extra")


@pytest.fixture
def fresh_commands(monkeypatch):
    """The program as it is before its first start, restored afterwards."""
    own = {n: c for n, c in main.commands.items() if not c.callback.__module__.startswith("graftwork.plugins.")}
    monkeypatch.setattr(main, "commands", own)
    monkeypatch.setattr(main, "complete", False)
    monkeypatch.setattr(main, "plugin_error", None)


def test_plugins_lists_ours():
    text = succeed("plugins")
    assert "transfer" in text and "graftwork" in text and "loaded" in text and "register_commands" in text


def test_plugins_bring_commands(fresh_commands):
    with plugins.registered(Extra(), "extra"):
        assert succeed("extra-command") == "extra\n"
        assert "│ extra " in succeed("plugins")


def test_a_conflict_stops_all_but_the_listing(fresh_commands, monkeypatch):
    def conflict(cli):
        raise plugins.PluginConflict("command 'zoo' is registered twice")

    monkeypatch.setattr("graftwork.cli.add_commands", conflict)
    assert "command 'zoo' is registered twice" in refuse("zoo", "list")
    assert "command 'zoo' is registered twice" in refuse("transfer", "fit")
    assert "loaded" in succeed("plugins")


def test_a_skipped_plugin_is_one_line_and_no_failure(fresh_commands, monkeypatch):
    def warn(cli):
        import warnings

        warnings.warn("plugin 'x' is skipped.", PluginWarning, stacklevel=2)

    monkeypatch.setattr("graftwork.cli.add_commands", warn)
    result = run("zoo", "info", "glyphnet")
    assert result.exit_code == 0 and result.stderr == "graftwork: plugin 'x' is skipped.\n"


# transfer


def test_fit_says_what_it_did(classifier):
    path, text = classifier
    assert path.is_file() and [p.name for p in path.parent.iterdir()] == ["digits.h5"]
    assert "36 pictures of 3 classes, features of glyphnet" in text and "C = 0.1" in text
    line = next(line for line in text.splitlines() if "validation accuracy" in line)
    assert line.endswith("on 24 pictures") and float(line.split()[2]) >= 0.95


def test_evaluate_prints_one_json_object(classifier, digits):
    found = json.loads(succeed("transfer", "evaluate", classifier[0], digits / "validation", "--json"))
    assert found["images"] == 24 and set(found["by_class"]) == {"0", "3", "6"}
    assert found["accuracy"] == pytest.approx(np.mean(list(found["by_class"].values()))) and found["accuracy"] >= 0.95
    table = succeed("transfer", "evaluate", classifier[0], digits / "validation")
    assert f"accuracy {found['accuracy']:.4f} on 24 pictures" in table


def test_predict_files_and_folders(classifier, digits):
    folder, picture = digits / "validation" / "3", digits / "validation" / "6" / "15.png"
    lines = [line.split("\t") for line in succeed("transfer", "predict", classifier[0], folder, picture).splitlines()]
    assert [line[0] for line in lines] == [*(str(p) for p in sorted(folder.iterdir())), str(picture)]
    assert lines[-1][1] == "6" and all(1 / 3 <= float(line[2]) <= 1 for line in lines)
    entry = json.loads(succeed("transfer", "predict", classifier[0], picture, "--json"))
    assert entry["class"] == "6" and sum(entry["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_similar_finds_its_own_kind(digits):
    query = digits / "train" / "0" / "03.png"
    found = json.loads(succeed("transfer", "similar", query, digits / "train", "--model", "glyphnet", "-k", 4, "--json"))
    assert found["query"] == str(query) and len(found["similar"]) == 4
    assert all("/0/" in s["image"] and s["image"] != str(query) for s in found["similar"])
    distances = [s["distance"] for s in found["similar"]]
    assert distances == sorted(distances)
    text = succeed("transfer", "similar", query, digits / "train", "--model", "glyphnet", "-k", 4)
    assert [line.split("\t")[1] for line in text.splitlines() if line] == [s["image"] for s in found["similar"]]
    everything = succeed("transfer", "similar", query, digits / "train" / "0", "--model", "glyphnet", "-k", 99)
    assert len(everything.strip().splitlines()) == 11


def fit_arguments(folder, output):
    return ("transfer", "fit", folder, "--model", "glyphnet", "-o", output)


def test_fit_refuses_folders_that_cannot_be_learned(tmp_path, digits):
    output = tmp_path / "out" / "x.h5"
    output.parent.mkdir()
    (tmp_path / "empty").mkdir()
    assert "has 0 sub-folders with images" in refuse(*fit_arguments(tmp_path / "empty", output))
    assert "is not a folder" in refuse(*fit_arguments(tmp_path / "absent", output))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0").symlink_to(digits / "train" / "0")
    assert "has 1 sub-folders with images; expected at least two" in refuse(*fit_arguments(tmp_path / "one", output))
    (tmp_path / "bad" / "b").mkdir(parents=True)
    (tmp_path / "bad" / "0").symlink_to(digits / "train" / "0")
    (tmp_path / "bad" / "b" / "broken.jpg").write_bytes(b"no picture")
    assert "broken.jpg is no image of a known format" in refuse_after_output(*fit_arguments(tmp_path / "bad", output))
    assert list(output.parent.iterdir()) == []


def refuse_after_output(*arguments) -> str:
    """The last line on the error output: the progress bar has been there before it."""
    result = run(*arguments)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    return result.stderr.strip().splitlines()[-1]


def test_pictures_in_both_parts_and_unreadable_ones_are_said(tmp_path, digits):
    shutil.copytree(digits, tmp_path / "data")
    shutil.copy(digits / "train" / "3" / "01.png", tmp_path / "data" / "validation" / "3" / "again.png")
    (tmp_path / "data" / "train" / "0" / "broken.png").write_bytes(b"no picture")
    result = run("transfer", "fit", tmp_path / "data", "--model", "glyphnet", "-C", "0.1", "-o", tmp_path / "x.h5", "--json")
    assert result.exit_code == 0, result.output
    assert "broken.png is no image of a known format" in result.stderr and "are left out" in result.stderr
    assert "1 pictures are in both parts" in result.stderr and "again.png" in result.stderr
    assert json.loads(result.stdout)["images"] == len(list((digits / "train").glob("*/*.png")))


def test_features_are_kept_where_asked_and_used_again(tmp_path, digits, monkeypatch):
    shutil.copytree(digits, tmp_path / "data")
    arguments = ("transfer", "fit", tmp_path / "data", "--model", "glyphnet", "--cache", "--json", "-o", tmp_path / "x.h5")
    first = json.loads(succeed(*arguments))
    monkeypatch.setattr("graftwork.plugins.transfer.features.FeatureExtractor._computed", lambda *a, **o: iter(()))
    assert json.loads(succeed(*arguments))["validation"] == first["validation"]


def test_a_device_that_is_not_there(tmp_path, digits):
    if gw.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gw.cuda.why_not() in refuse(*fit_arguments(digits, tmp_path / "x.h5"), "--device", "cuda")


def test_validation_pictures_of_an_unknown_class_are_noticed_before_the_work(tmp_path, digits):
    (tmp_path / "train").symlink_to(digits / "train")
    for name in ("0", "9"):
        (tmp_path / "validation" / name).mkdir(parents=True)
        (tmp_path / "validation" / name / "x.png").symlink_to(digits / "train" / "0" / "00.png")
    assert "has classes that were not in the training: 9; it had 0, 3, 6" in refuse(*fit_arguments(tmp_path, tmp_path / "x.h5"))
    assert not (tmp_path / "x.h5").exists()


def test_fit_refuses_places_it_cannot_write_before_the_work(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("graftwork.plugins.transfer.features.FeatureExtractor.transform", None)  # work would fail here
    assert "the folder" in refuse(*fit_arguments(digits, tmp_path / "no" / "x.h5"))
    assert "it is a folder; name a file" in refuse(*fit_arguments(digits, tmp_path))

    def read_only(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("graftwork.nn.files.tempfile.TemporaryFile", read_only)
    assert "Permission denied; choose another folder" in refuse(*fit_arguments(digits, tmp_path / "x.h5"))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_the_old_file(tmp_path, digits, monkeypatch):
    import h5py

    output = tmp_path / "x.h5"
    output.write_bytes(b"old")

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(h5py.Group, "create_dataset", interrupt)
    result = run(*fit_arguments(digits / "train", output), "-C", "0.1")
    assert result.exit_code == 1
    assert output.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x.h5"]


def test_models_and_weights_that_are_unknown(tmp_path, digits):
    fit = ("transfer", "fit", digits, "-o", tmp_path / "x.h5", "--model")
    assert "did you mean glyphnet or lenet5?" in refuse(*fit, "glifnet")
    assert "no weights named 'imagenet'; named ones: 'glyphs'" in refuse(*fit, "glyphnet", "--weights", "imagenet")
    assert "no weights for resnet32 ship with the package" in refuse(*fit, "resnet32")
    assert "no weights file at" in refuse(*fit, "glyphnet", "--weights", tmp_path / "no.h5")
    (tmp_path / "short.h5").write_bytes(zoo.registry.weights_path(zoo.find("glyphnet"), "glyphs").read_bytes()[:9000])
    assert "damaged or truncated" in refuse(*fit, "glyphnet", "--weights", tmp_path / "short.h5")
    assert "expected a positive number" in refuse(*fit, "glyphnet", "-C", "-1")
    assert not (tmp_path / "x.h5").exists()


def test_predict_evaluate_and_similar_refuse(tmp_path, classifier, digits):
    picture = digits / "train" / "0" / "00.png"
    assert "no file at" in refuse("transfer", "predict", tmp_path / "none.h5", picture)
    (tmp_path / "short.h5").write_bytes(classifier[0].read_bytes()[:5000])
    assert "damaged or truncated" in refuse("transfer", "predict", tmp_path / "short.h5", picture)
    assert "no image at" in refuse("transfer", "predict", classifier[0], tmp_path / "none.png")
    (tmp_path / "empty").mkdir()
    assert "no images below" in refuse("transfer", "predict", classifier[0], tmp_path / "empty")
    assert "0 sub-folders" in refuse("transfer", "evaluate", classifier[0], tmp_path / "empty", "--json")
    similar = ("transfer", "similar", picture)
    assert "no weights for squeezenet1_1" in refuse(*similar, digits)
    assert "expected at least 1" in refuse(*similar, digits, "--model", "glyphnet", "-k", 0)
    assert "no images below" in refuse(*similar, tmp_path / "empty", "--model", "glyphnet")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "a.png").symlink_to(picture)
    assert "holds no picture but 00.png itself" in refuse(*similar, tmp_path / "self", "--model", "glyphnet")


def test_without_scikit_learn(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("graftwork.plugins.transfer.find_spec", lambda name: None)
    for arguments in (fit_arguments(digits, tmp_path / "x.h5"), ("demo", "-o", tmp_path / "x.html")):
        assert "pip install 'graftwork[transfer]'" in refuse(*arguments)
