"""Pages of graphs: complete, self-contained, well-formed, laid out without overlaps."""

import html.parser
import json
import os
import re

import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, nn
from graftwork.nn import functional as F
from graftwork.nn import graph_page
from graftwork.nn.graph_page import page
from graftwork.nn.profiling import profile

VOID = {"meta", "input"}


class Reader(html.parser.HTMLParser):
    """Checks nesting and collects elements with their attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader


def network():
    gw.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm(4), nn.ReLU(), nn.GlobalAvgPool2d(), nn.Linear(4, 2)
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def executable():
    with gw.no_grad():
        return gw.compile(network()).executable(gw.tensor(np.ones((1, 8, 8, 3), np.float32)))


def branches(x):
    y = F.exp(x)
    for i in range(14):
        y = F.softmax(y) if i % 2 else F.matmul(y, y)
    return F.matmul(y, x), y.sum(), x.T  # an edge from the very top, several results


@pytest.fixture(scope="module")
def graph():
    with gw.no_grad():
        return gw.compile(branches).graph(gw.tensor(np.eye(4, dtype=np.float32)))


def cards(reader):
    return [a for tag, a in reader.elements if tag == "g" and a.get("class") == "node"]


def test_every_op_has_a_card_a_row_and_details(executable):
    text = page(executable)
    reader = read(text)
    body = [n.op.name for n in executable.graph.nodes if n not in executable.ahead_nodes]
    assert body == ["conv2d", "mean", "linear"]
    assert len(cards(reader)) == 3 and len([a for tag, a in reader.elements if tag == "tr" and "data-n" in a]) == 3
    details = json.loads(re.search(r"const details=(\[.*?\]);\n", text, re.S)[1])
    assert [d["facts"][0][0] for d in details] == ["call"] * 3
    assert details[0]["below"] == [1] and details[1]["above"] == [0] and details[2]["below"] == []
    words = " ".join(reader.words)
    for expected in ("conv2d + relu", "Memory plan", "lower bound", "weights and state", "computed ahead", "test_graph_page."):
        assert expected in words


def test_the_page_needs_nothing_else(executable, graph):
    for source in (executable, graph):
        text = page(source)
        assert not re.search(r"https?://|src=|<link|@import|url\((?!#tip)", text)
        assert "utf-8" in text


def test_times_bring_shares_and_rates(executable):
    x = np.ones((1, 8, 8, 3), np.float32)
    rows = profile(executable, [x], 2)
    text = page(executable, times={row.node: row.nanoseconds for row in rows})
    assert "By time" in text and "GFLOP/s" in text and "class=share" in text
    assert "By operations" in page(executable) and "class=share" not in page(executable)
    shares = [float(s) for s in re.findall(r"</i></span>([\d.]+)%</td>", text)]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100.0, abs=0.5)


def test_a_graph_alone_has_no_memory_plan(graph):
    assert "Memory plan" not in page(graph)


def test_cards_of_one_layer_do_not_overlap(graph):
    places = {}
    for tag, attrs in read(page(graph)).elements:
        if tag == "g" and attrs.get("class") in ("node", "terminal"):
            x, y = map(float, re.findall(r"-?[\d.]+", attrs["transform"]))
            places.setdefault(round(y - 14 if attrs["class"] == "terminal" else y), []).append(x)
    assert len(places) > 10
    for xs in places.values():
        assert all(b - a >= graph_page.WIDE for a, b in zip(sorted(xs), sorted(xs)[1:], strict=False))


def test_arrows_go_downwards_and_long_ones_are_named(graph):
    text = page(graph)
    reader = read(text)
    for tag, attrs in reader.elements:
        if tag == "path" and attrs.get("class") == "edge":
            start = float(re.match(r"M-?[\d.]+ ([\d.]+)", attrs["d"])[1])
            assert float(re.findall(r"[\d.]+", attrs["d"])[-1]) > start
    assert re.search(r"class=far[^>]*>\N{LEFTWARDS ARROW} x<", text)  # `x` is read again fifteen layers further down


def test_a_training_step_with_writes_and_views(rng):
    model = network().train()
    optimizer = nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    @gw.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(F.dropout(model(x), 0.5), y)
        loss.backward()
        optimizer.step()
        return loss

    x, y = gw.tensor(rng.random((2, 8, 8, 3), np.float32)), gw.tensor(np.array([0, 1]))
    executable = step.executable(x, y)
    times = {row.node: row.nanoseconds for row in profile(executable, [x.data, y.data], 1)}
    reader = read(page(executable, times=times))
    assert len(cards(reader)) == len(executable.graph.nodes)
    words = " ".join(reader.words)
    assert "sgd_update" in words and re.search(r'\["changes", "model.0.weight, momentum', words) and "dropout" in words


def test_hostile_names_are_text(rng):
    def f(x):
        return F.exp(x @ x)

    f.__name__ = "</script><script>alert(1)</script>"
    with gw.no_grad():
        text = gw.compile(f).graph(gw.tensor(rng.random((2, 2), np.float32))).html()
    assert "alert(1)" in text and "<script>alert" not in text
    read(text)


def test_an_empty_graph():
    with gw.no_grad():
        text = gw.compile(lambda x: x).graph(gw.tensor([1.0])).html()
    assert not cards(read(text))


def test_it_is_written_whole_or_not_at_all(tmp_path, graph, executable, monkeypatch):
    path = tmp_path / "graph.html"
    text = graph.html(path)
    assert path.read_text(encoding="utf-8") == text
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        page(executable, path)
    assert path.read_text(encoding="utf-8") == text and os.listdir(tmp_path) == ["graph.html"]
    with pytest.raises(errors.DataError, match="does not exist"):
        graph.html(tmp_path / "nowhere" / "graph.html")
