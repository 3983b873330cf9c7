"""Comparisons against loops over resamples, and what may not be compared."""

import json

import numpy as np
import pytest

from tests.tfrec.test_evaluation import StubModel, evaluated, make_run
from tfrec.comparison import differences, mean_over_seeds, measure, measured_ranks, obstacles, verdict
from tfrec.errors import UserError
from tfrec.metrics import Difference
from tfrec.ranks import Ranks

pytestmark = pytest.mark.jax


def compare(first, second, split="test"):
    return differences(measure(first, split), measure(second, split))


def test_compare_pairs_the_queries(tmp_path):
    run = make_run(tmp_path)
    first = evaluated(tmp_path, "first", run)
    run.model = StubModel(run.schema.num_items, seed=1)
    second = evaluated(tmp_path, "second", run)
    found = compare(first, second)
    metrics = [json.loads((directory / "evaluation.json").read_text())["metrics"] for directory in (first, second)]
    for name, difference in found.items():
        assert difference.difference == pytest.approx(metrics[0][name] - metrics[1][name])
        assert difference.low <= difference.difference <= difference.high
    assert compare(first, first)["mrr"] == (0, 0, 0, 1)
    backwards = compare(second, first)["mrr"]
    assert backwards.difference == pytest.approx(-found["mrr"].difference)


def test_what_is_measured_is_what_was_evaluated(tmp_path):
    run = make_run(tmp_path)
    for split in ("test", "validation"):
        found = measure(evaluated(tmp_path, "run", run, split), split)
        name = "evaluation.json" if split == "test" else "evaluation_validation.json"
        written = json.loads((tmp_path / "run" / name).read_text())
        assert found.metrics == written["metrics"]
        assert {name: list(pair) for name, pair in found.intervals.items()} == written["confidence_intervals"]


def ranked(name, better, **protocol):
    """Four users with one query each, ranked at `better`; recall@1 is 1 where that is 0."""
    users = np.arange(4, dtype=np.int32)
    ranks = Ranks(users, users * 0 + 3, users + 2, np.array(better, np.int32), users * 0)
    return measured_ranks(name, ranks, [1], 200, {"split": "test", "dataset": "d", **protocol})


def loop(first, second, samples=200):
    """The share of resampled differences on the less frequent side of 0, by drawing as the contract says."""
    rng = np.random.default_rng(0)
    means, left = [], samples
    while left:
        drawn = rng.integers(0, 4, (min(32, left), 4))
        means += [np.mean([first[user] - second[user] for user in row]) for row in drawn]
        left -= len(drawn)
    return np.array(means)


def test_rows_of_several_seeds_are_paired_by_their_means(tmp_path):
    seeds = [ranked("a", [0, 0, 5, 0]), ranked("b", [0, 3, 0, 0])]
    row, other = mean_over_seeds("row", seeds), ranked("other", [0, 2, 7, 0])
    assert (row.name, row.seeds, row.metrics["recall@1"]) == ("row", 2, 0.75)
    means = loop([1, 0.5, 0.5, 1], [1, 0, 0, 1])
    found = differences(row, other)["recall@1"]
    assert found.difference == pytest.approx(0.25)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    assert found.p_value == pytest.approx(min(2 * (1 + min((means <= 0).sum(), (means >= 0).sum())) / 201, 1))


def test_fewer_resamples_are_the_first_of_more():
    few, many = ranked("a", [0, 1, 5, 0]), ranked("b", [1, 0, 0, 0])
    few = measured_ranks("a", Ranks(*few.queries.T, few.queries[:, 0] + 2, *np.zeros((2, 4), int)), [1], 70, {})
    many = measured_ranks("b", Ranks(*many.queries.T, many.queries[:, 0] + 2, *np.zeros((2, 4), int)), [1], 200, {})
    np.testing.assert_array_equal(few.resampled, many.resampled[:70])


@pytest.mark.parametrize(
    ("protocol", "reason"),
    [
        ({"filter_seen": True}, "`filter_seen` is None and True"),
        ({"dataset": "e"}, "`dataset` is 'd' and 'e'"),
        ({"request_time": True}, "`request_time` is None and True"),
        ({"split": "validation"}, "`split` is 'test' and 'validation'"),
        ({"task": "ranking"}, "`task` is None and 'ranking'"),
    ],
)
def test_other_protocols_are_not_compared(protocol, reason):
    first, other = ranked("first", [0, 0, 0, 0]), ranked("other", [0, 0, 0, 0], **protocol)
    assert obstacles(first, other) == [reason]
    with pytest.raises(UserError, match=f"first and other: cannot be compared, {reason}"):
        differences(first, other)
    with pytest.raises(UserError, match=f"first and other: are no seeds of one model, {reason}"):
        mean_over_seeds("row", [first, other])


def test_other_queries_are_not_compared(tmp_path):
    run = make_run(tmp_path)
    first, second = evaluated(tmp_path, "first", run), evaluated(tmp_path, "second", run)
    ranks = Ranks.read(second / "ranks_test.npz")
    Ranks(**{name: array[1:] for name, array in vars(ranks).items()}).write(second / "ranks_test.npz")
    with pytest.raises(UserError, match="measured on different queries"):
        compare(first, second)


def test_what_is_missing_is_named(tmp_path):
    directory = evaluated(tmp_path, "first", make_run(tmp_path))
    (directory / "ranks_test.npz").unlink()
    with pytest.raises(UserError, match=r"ranks_test.npz: not there; run `tfrec evaluate .*first --split test` first"):
        measure(directory)
    with pytest.raises(UserError, match=r"evaluation.json: not there; run `tfrec evaluate"):
        measure(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("metric", "difference", "found"),
    [
        ("auc", Difference(0.1, 0.05, 0.15, 0.01), "better"),
        ("ndcg@10", Difference(-0.1, -0.15, -0.05, 0.01), "worse"),
        ("log_loss", Difference(0.1, 0.05, 0.15, 0.01), "worse"),
        ("normalised_entropy_click", Difference(-0.1, -0.15, -0.05, 0.01), "better"),
        ("auc", Difference(0.1, -0.05, 0.25, 0.2), ""),
    ],
)
def test_verdict_knows_which_way_is_better(metric, difference, found):
    assert verdict(metric, difference) == found
