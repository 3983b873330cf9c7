"""A user with a million events, an item in 30 % of all events: neither costs more than as many others."""

import time

import numpy as np
import polars as pl
import pytest

from beam_jobs.preprocess import run
from tfrec.config import parse
from tfrec.manifest import read_manifest

EVENTS, USERS, MOST = 1_500_000, 20_000, 10_000


def log(path, *, hot):
    """A log of which, where `hot`, a million events are of one user, and three in ten of one item."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(1, USERS, EVENTS), rng.integers(1, 50_000, EVENTS)
    if hot:
        user[rng.choice(EVENTS, 1_000_000, replace=False)] = 0
        item[rng.random(EVENTS) < 0.3] = 0
    frame = pl.DataFrame({"user_id": user, "item_id": item, "time": 1_600_000_000 + np.arange(EVENTS)})
    frame.write_parquet(path, row_group_size=200_000)
    return user, item


def preprocess(folder, name, *, hot):
    """What a log becomes, and the seconds of all cores that it took."""
    columns = log(folder / f"{name}.parquet", hot=hot)
    counters = [{"name": name, "kind": "counter", "of": name.removeprefix("of_")} for name in ("of_user", "of_item_id")]
    data = {"out": str(folder / name), "events": {"files": [str(folder / f"{name}.parquet")]}}
    start = time.process_time()
    directory = run(parse({"data": data, "features": {"events": counters}}))
    return directory, columns, time.process_time() - start


@pytest.mark.slow
def test_hot_users_and_items_do_not_stall_the_job(tmp_path):
    _, _, even = preprocess(tmp_path, "even", hot=False)
    directory, (user, item), hot = preprocess(tmp_path, "hot", hot=True)
    account = read_manifest(directory)["account"]["events"]
    expected = np.minimum(np.bincount(user), MOST).sum()
    assert (account["input"], account["stored"], account["truncated"]) == (EVENTS, expected, EVENTS - expected)
    assert (user == 0).sum() >= 1_000_000
    assert (item == 0).mean() > 0.29
    assert hot < 1.5 * even
