"""The page of a run: well-formed, self-contained, and every figure's numbers those of their source."""

import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest

from tests.datasets import make_dataset
from tests.tfrec.test_training import configure, interrupt_at
from tfrec.errors import UserError
from tfrec.evaluation import evaluate
from tfrec.manifest import write_manifest
from tfrec.report import write_report
from tfrec.runs import load_run
from tfrec.training import train

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
VOID = {"meta", "br", "hr", "img", "link"}
OWN = "<b>&own"  # the name of a directory is text too


class Parsed(HTMLParser):
    """Checks nesting; keeps tables, texts and everything that refers to something."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.tags, self.ids = [], [], [], []
        self.tables, self.texts, self.labels = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        found = dict(attributes)
        self.references += [value for key, value in attributes if key in ("href", "src", "data", "action")]
        self.ids += [found["id"]] if "id" in found else []
        self.labels += [found["aria-label"]] if "aria-label" in found else []
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def rows(self, *fields):
        """The rows of all tables with these names of columns."""
        return [row for table in self.tables if table[0] == list(fields) for row in table[1:]]


def drawn(page, name):
    """The coordinates of the line, bar or point of that name, `(N, 2)`; y grows upwards."""
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        for group in ElementTree.fromstring(svg).iter("g"):
            if group.get("id") == name:
                if (path := group.find("path")) is None:  # a point is a mark alone
                    numbers = [group.find("g/use").get(name) for name in "xy"]
                else:
                    numbers = re.findall(r"-?[\d.]+", path.get("d"))
                points = np.array(numbers, float).reshape(-1, 2)
                return points * [1, -1]
    raise AssertionError(f"no {name} in the page")


def assert_drawn_like(places, values):
    """Places on the page are the values up to scale and origin, to a hundredth of a point."""
    slope, origin = np.polyfit(values, places, 1)
    np.testing.assert_allclose(np.polyval([slope, origin], values), places, atol=0.02)
    assert slope > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`first` is trained for an epoch, the other run goes on from it; both are evaluated."""
    folder = tmp_path_factory.mktemp("report")
    data = make_dataset(folder / "shop", users=80, min_events=18, max_events=18)
    train(configure(data, epochs=1), folder / "first", progress=False)
    train(configure(data, initialize_from=str(folder / "first")), folder / OWN, progress=False)
    for name in ("first", OWN):
        evaluate(load_run(folder / name)).write(folder / name)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    write_report(folder / OWN, folder / "page.html", others=[folder / "first"])
    return (folder / "page.html").read_text("utf-8")


def test_page_is_well_formed_and_needs_nothing_beside_it(page):
    parsed = Parsed(page)
    assert not {"script", "link", "iframe", "img", "object"} & set(parsed.tags)
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in parsed.references)
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org)", page)
    assert {reference[1:] for reference in parsed.references if reference.startswith("#")} <= set(parsed.ids)
    assert len(parsed.labels) == parsed.tags.count("figure") == page.count("<svg")
    assert "\ufffd" not in page


def test_names_are_escaped(page):
    assert "<b>" not in page
    assert Parsed(page).rows("", "")[0] == ["model", "sasrec"]
    assert OWN in Parsed(page).texts


def test_equal_runs_give_equal_bytes(folder, page):
    write_report(folder / OWN, folder / "again/page.html", others=[folder / "first"])
    assert (folder / "again/page.html").read_text("utf-8") == page


def test_curves_are_those_of_the_log(folder, page):
    entries = [json.loads(line) for line in (folder / OWN / "logs/metrics.jsonl").read_text().splitlines()]
    points = drawn(page, f"line/loss/{OWN}")
    assert_drawn_like(points[:, 0], [entry["epoch"] for entry in entries])
    assert_drawn_like(points[:, 1], [entry["loss"] for entry in entries])
    ndcg = [entry["validation"]["ndcg@10"] for entry in entries]
    assert_drawn_like(drawn(page, f"line/validation_ndcg@10/{OWN}")[:, 1], ndcg)
    table = {(name, run, epoch): value for name, run, epoch, value in Parsed(page).rows("curve", "run", "epoch", "")}
    for entry in entries:
        assert table["loss", OWN, str(entry["epoch"])] == f"{entry['loss']:.6g}"


def test_metrics_are_those_of_the_evaluation(folder, page):
    documents = [json.loads((folder / name / "evaluation.json").read_text()) for name in (OWN, "first")]
    for metric, *cells in Parsed(page).rows("metric", OWN, "first"):
        for place, (document, cell) in enumerate(zip(documents, cells, strict=True)):
            low, high = document["confidence_intervals"][metric]
            assert cell == f"{document['metrics'][metric]:.4f} [{low:.4f}, {high:.4f}]"
            ends = drawn(page, f"interval/{metric}/{place}")[:, 0]
            point = drawn(page, f"point/{metric}/{place}")[0, 0]
            assert_drawn_like([ends[0], point, ends[1]], [low, document["metrics"][metric], high])
    changes = {
        row[0]: row[1] for row in Parsed(page).rows("metric", "difference [95 % interval] p-value, paired by user", "")
    }
    assert changes["mrr"].startswith(f"{documents[0]['metrics']['mrr'] - documents[1]['metrics']['mrr']:+.4f} [")


def test_slices_are_those_of_the_evaluation(folder, page):
    document = json.loads((folder / OWN / "evaluation.json").read_text())
    widths, values = [], []
    for name, found in document["slices"]["popularity_decile"].items():
        if "ndcg@10" in found:
            bar = drawn(page, f"bar/popularity_decile/{name}")
            widths.append(np.ptp(bar[:, 0]))
            values.append(found["ndcg@10"])
    np.testing.assert_allclose(np.array(widths) / max(widths), np.array(values) / max(values), atol=1e-3)
    rows = Parsed(page).rows("group", "slice", "queries", "ndcg@10")
    assert ["popularity decile", "1", str(document["slices"]["popularity_decile"]["1"]["queries"])] in [
        row[:3] for row in rows
    ]


def table_of(run):
    with h5py.File(run / "model.weights.h5") as file:
        found = []
        file.visititems(lambda _, node: found.append(node[()]) if getattr(node, "shape", None) == (42, 8) else None)
    return found[0][2:]


def test_items_are_those_of_the_weights(folder, page):
    states = {
        row[0]: row[1:]
        for row in Parsed(page).rows(
            "state", "smallest norm", "median", "99 %", "largest", "effective rank", "variance on two axes"
        )
    }
    assert list(states) == ["before training", "first (start)", OWN]
    singular = Parsed(page).rows("state", "number", "singular value")
    norms = Parsed(page).rows("state", "norm", "share of items")
    for name, directory in (("first (start)", "first"), (OWN, OWN)):
        vectors = table_of(folder / directory).astype(float)
        lengths = np.sqrt((vectors**2).sum(axis=1))
        assert float(states[name][1]) == pytest.approx(np.median(lengths), rel=1e-5)
        expected = np.sqrt(np.linalg.eigvalsh(vectors.T @ vectors)[::-1])
        shown = [float(row[2]) for row in singular if row[0] == name]
        np.testing.assert_allclose(shown, expected / expected[0], rtol=1e-4)
        points = drawn(page, f"line/singular_value,_the_first_=_1/{name}".replace(" ", "_"))
        assert_drawn_like(points[:, 1], shown)
        shares = np.array([float(row[2]) for row in norms if row[0] == name])
        places = np.array([float(row[1]) for row in norms if row[0] == name])
        assert shares.sum() == pytest.approx(1, abs=1e-4)
        assert (shares * places).sum() == pytest.approx(lengths.mean(), abs=places[0])
        centred = vectors - vectors.mean(axis=0)
        variance = np.linalg.eigvalsh(centred.T @ centred)
        assert float(states[name][5]) == pytest.approx(variance[-2:].sum() / variance.sum(), rel=1e-4)
    assert page.count("data:image/png;base64,") >= 3  # a map a state


def test_unfinished_run_says_so(folder, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 7)
    with pytest.raises(UserError, match="interrupted"):
        train(configure(folder / "shop"), tmp_path / "run", progress=False)
    write_report(tmp_path / "run", tmp_path / "page.html", others=[folder / "first"])
    text = (tmp_path / "page.html").read_text("utf-8")
    assert ["training", "not finished, 1 epochs so far"] in Parsed(text).rows("", "")
    for told in ("Not evaluated; `tfrec evaluate run`", "There are no curves", "its training is not finished"):
        assert told in text
    with pytest.raises(UserError, match="no run there"):
        write_report(tmp_path, tmp_path / "none.html")


def test_run_without_its_dataset_shows_what_it_can(folder, tmp_path):
    write_report(folder / OWN, tmp_path / "page.html", data=tmp_path / "nowhere")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "The model cannot be loaded: " in text
    assert drawn(text, "interval/mrr/0").shape == (2, 2)


def test_published_figures_are_shown_of_the_run_alone(folder, tmp_path):
    version = tmp_path / "models/shop/3"
    version.mkdir(parents=True)
    weights = json.loads((folder / OWN / "run.json").read_text())["weights"]
    write_manifest(
        version, {"run": {"weights": weights}, "index": {"kind": "scann", "recall": 0.97}, "parity": {"users": 9}}
    )
    write_report(folder / OWN, tmp_path / "page.html", published=version.parent)
    rows = Parsed((tmp_path / "page.html").read_text("utf-8")).tables
    assert any(["index.recall", "0.97"] in table and ["parity.users", "9"] in table for table in rows)
    with pytest.raises(UserError, match="was not made of"):
        write_report(folder / "first", tmp_path / "page.html", published=version.parent)


def test_calibration_and_its_numbers(folder, tmp_path):
    shutil.copytree(folder / "first", tmp_path / "run")
    path = tmp_path / "run/evaluation.json"
    document = json.loads(path.read_text())
    points = [{"predicted": 0.1, "observed": 0.05, "count": 20}, {"predicted": 0.4, "observed": 0.5, "count": 20}]
    points.append({"predicted": 0.7, "observed": 0.6, "count": 11})
    path.write_text(
        json.dumps(
            {**document, "calibration": {"click": {"ratio": 1.25, "confidence_interval": [1.0, 1.5], "curve": points}}}
        )
    )
    write_report(tmp_path / "run", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    line = drawn(text, "calibration/click")
    assert_drawn_like(line[:, 0], [0.1, 0.4, 0.7])
    assert_drawn_like(line[:, 1], [0.05, 0.5, 0.6])
    assert "click: predicted over observed 1.2500 [1.0000, 1.5000]." in text
    rows = Parsed(text).rows("label", "candidates", "predicted", "observed")
    assert rows[0] == ["click", "20", "0.1", "0.05"]
