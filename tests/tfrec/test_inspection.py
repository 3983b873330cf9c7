import io
import re

import numpy as np
import pytest
from rich.console import Console

from tests.datasets import make_dataset
from tfrec.data import Dataset
from tfrec.inspection import dataset_tables
from tfrec.pictures import bars_table


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset.open(make_dataset(tmp_path_factory.mktemp("inspection") / "data", side_features=True))


@pytest.fixture(scope="module")
def shown(dataset):
    """What is shown, table by table, as rows of cells; bars are left out."""
    found = {}
    for table in dataset_tables(dataset, users=3):
        lines = [[cell.strip() for cell in re.split(r"[┃│]", line)[1:-1]] for line in draw(table).splitlines()]
        found[str(table.title)] = [[cell for cell in row if not set(cell) <= set("█▉▊▋▌▍▎▏ ")] for row in lines if row]
    return found


def draw(table):
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()


def test_a_bar_is_as_long_as_its_share_of_the_largest():
    lines = draw(bars_table([("a", [10]), ("b", [5]), ("c", [0])], ("events",))).splitlines()
    assert [line.count("█") for line in lines if re.search(r" [abc] ", line)] == [24, 12, 0]


def test_lengths_are_counted_by_powers_of_two(dataset, shown):
    lengths = np.diff(dataset.histories().offsets)
    bounds = [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]
    expected = [str(sum(low <= length <= high for length in lengths)) for low, high in bounds]
    assert [row[1] for row in shown["length of histories"][1:]] == expected
    assert [row[0] for row in shown["length of histories"][1:]] == ["1", "2 to 3", "4 to 7", "8 to 15", "16 to 31"]


def test_sessions_are_counted(dataset, shown):
    histories = dataset.histories()
    counts, sizes = [], {}
    for user, (start, stop) in enumerate(zip(histories.offsets, histories.offsets[1:], strict=False)):
        own = histories.columns["session"][start:stop].tolist()
        counts.append(len(set(own)))
        for session in own:
            sizes[user, session] = sizes.get((user, session), 0) + 1
    assert int(shown["sessions of users"][1][1]) == counts.count(1)
    assert int(shown["length of sessions"][1][1]) == list(sizes.values()).count(1)
    assert sum(int(row[1]) for row in shown["length of sessions"][1:]) == len(sizes)


def test_distributions_name_values_and_bins(dataset, shown):
    catalogue, items = dataset.catalogue(), dataset.histories().columns["item"]
    prices = catalogue.codes[items, dataset.schema.item_columns()["price"].start]
    assert shown["item price"][1:] == [
        [name, str(int((prices == code).sum()))]
        for code, name in enumerate(["below 1", "1 to 5", "5 to 20", "from 20"], start=2)
    ]
    best = max(range(2, 42), key=lambda item: ((items == item).sum(), -item))
    assert shown["item item_id"][1] == [
        f"{catalogue.item_ids[best]}  {catalogue.display['title'][best]}",
        str(int((items == best).sum())),
    ]
    assert shown["item item_id"][-1][0] == "32 others"
    brands = catalogue.codes[items, dataset.schema.item_columns()["brand"].start]
    rates = {row[0]: float(row[1]) for row in shown["unknown or missing, of events (users for their own features)"][1:]}
    assert rates["item brand"] == pytest.approx(100 * (brands == 1).mean(), abs=0.005)


def test_histories_have_titles_from_short_to_long(dataset, shown):
    histories = dataset.histories()
    titles = [title for title in shown if title.startswith("user user-")]
    users = [histories.user_ids.index(title.split()[1].rstrip(":")) for title in titles]
    lengths = np.diff(histories.offsets)[users]
    assert len(users) == 3
    assert lengths.tolist() == sorted(lengths)
    last = shown[titles[-1]][-1]
    item = histories.columns["item"][histories.offsets[users[-1] + 1] - 1]
    assert last[-1].endswith(dataset.catalogue().display["title"][item])
    assert last[0] == str(lengths[-1])
