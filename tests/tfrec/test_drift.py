import xml.etree.ElementTree as ElementTree
from collections import Counter

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from typer.testing import CliRunner

from tests.datasets import TIME_ORIGIN, make_dataset
from tfrec.cli import app
from tfrec.data import Dataset
from tfrec.drift import compare_datasets, divergence, expected_noise
from tfrec.schema import Schema

OPTIONS = {"side_features": True, "users": 50}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift")
    return [
        make_dataset(folder / "old", items=30, seed=0, **OPTIONS),
        make_dataset(folder / "new", items=40, seed=1, **OPTIONS),
    ]


@pytest.fixture(scope="module")
def datasets(directories):
    return [Dataset.open(directory) for directory in directories]


def test_divergence_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        old, new = rng.integers(0, 50, (2, 30)) * (rng.random((2, 30)) < 0.7)
        expected = jensenshannon(old / old.sum(), new / new.sum(), base=2) ** 2
        assert divergence(old, new) == pytest.approx(expected, abs=1e-12)
    assert divergence(np.array([5, 0]), np.array([0, 3])) == 1
    assert divergence(np.array([1, 2]), np.array([10, 20])) == pytest.approx(0, abs=1e-15)


def test_noise_is_what_equal_distributions_have_on_average():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(20, 3.0))
    draws = [(rng.multinomial(2000, shares), rng.multinomial(900, shares)) for _ in range(300)]
    found = np.mean([divergence(*pair) for pair in draws])
    assert np.mean([expected_noise(*pair) for pair in draws]) == pytest.approx(found, rel=0.1)


def values_of(dataset, name):
    """The values of a feature, one an event (a user for user features), read event by event; None = unknown."""
    schema, histories, catalogue = dataset.schema, dataset.histories(), dataset.catalogue()
    feature = schema.feature(name)
    texts = [None, None, *feature.transform.read(dataset.directory)]
    if feature.side == "user":
        rows = histories.user[name]
    elif feature.side == "event":
        rows = histories.columns[f"event_{name}"]
    else:
        rows = [catalogue.codes[item, schema.item_columns()[name]] for item in histories.columns["item"]]
    return [texts[code] for row in rows for code in row if code != 0]


@pytest.mark.parametrize("name", ["item_id", "brand", "categories", "segment", "tags", "device"])
def test_drift_of_values_is_counted_by_value(datasets, name):
    found = {drift.name: drift for drift in compare_datasets(*datasets).drifts}[name]
    counts = [Counter(values_of(dataset, name)) for dataset in datasets]
    values = sorted(counts[0].keys() | counts[1].keys(), key=str)
    shares = [[count[value] / count.total() for value in values] for count in counts]
    assert found.divergence == pytest.approx(jensenshannon(*shares, base=2) ** 2, abs=1e-9)
    assert found.unknown == pytest.approx([count[None] / count.total() for count in counts])
    vocabularies = [set(dataset.schema.feature(name).transform.read(dataset.directory)) for dataset in datasets]
    assert found.new_values == len(vocabularies[1] - vocabularies[0])
    assert found.gone_values == len(vocabularies[0] - vocabularies[1])


def test_codes_of_other_fits_are_not_compared(datasets):
    drifts = {drift.name: drift for drift in compare_datasets(*datasets).drifts}
    assert drifts["image"].divergence is drifts["image"].noise is None  # another rotation
    assert drifts["price"].divergence is not None  # the same boundaries
    assert compare_datasets(datasets[0], datasets[0]).drifts[4].divergence == 0


def test_new_and_gone_ones_and_periods_are_counted(datasets):
    found = compare_datasets(*datasets)
    old, new = datasets
    assert found.members["items"][:2] == (10, 0)
    ids = new.catalogue().item_ids
    added = [item for item in new.histories().columns["item"] if ids[item] not in old.catalogue().item_ids]
    assert found.members["items"][2] == pytest.approx(len(added) / len(new.histories().columns["item"]))
    assert found.members["users"] == (0, 0, 0.0)
    assert found.sizes["events"] == tuple(len(each.histories().columns["item"]) for each in datasets)
    for place, dataset in enumerate(datasets):
        assert sum(period[1 + place] for period in found.periods) == len(dataset.histories().columns["item"])
        days = Counter(
            str(np.datetime64(int(time) + TIME_ORIGIN, "s"))[:10] for time in dataset.histories().columns["time"]
        )
        assert {start: events[place] for start, *events in found.periods if events[place]} == days


def test_commands_show_and_draw(directories, tmp_path):
    runner = CliRunner()
    old, new = map(str, directories)
    done = runner.invoke(app, ["data", "compare", old, new, "--picture", str(tmp_path / "drift.svg")])
    assert done.exit_code == 0, done.output
    assert "Jensen-Shannon" in done.stdout
    first = (tmp_path / "drift.svg").read_bytes()
    runner.invoke(app, ["data", "compare", old, new, "--picture", str(tmp_path / "drift.svg")])
    assert (tmp_path / "drift.svg").read_bytes() == first
    assert b"url(https" not in first
    assert b"cdnjs" not in first
    shown = runner.invoke(app, ["data", "inspect", new, "--users", "2", "--picture", str(tmp_path / "new.svg")])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("user user-") == 2
    assert "Title of item-" in shown.stdout
    for name in ("drift.svg", "new.svg"):
        root = ElementTree.fromstring((tmp_path / name).read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        texts = "".join(root.itertext()).replace("\xa0", " ")
        assert "categories" in texts
        assert "█" in texts
    for feature in Schema.read(directories[1]).features:
        assert feature.name in shown.stdout
