"""Which settings a sweep tries: all combinations, or seeded draws."""

import json

import numpy as np
import pytest

from tfrec.config import parse
from tfrec.errors import UsageError
from tfrec.space import Swept, settings


def setting_list(section, **model):
    parsed = parse({"data": {"out": "d"}, "sweep": section}).sweep
    return settings(parsed, "model", Swept(**model))


def test_grid_is_every_combination_in_the_order_of_the_keys():
    space = {"model.b": ["x", "y"], "model.a": [1, 2]}
    expected = [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert [(one["model.a"], one["model.b"]) for one in setting_list({"space": space})] == expected
    assert setting_list({"space": space}, space={"model.a": [5]}) == [
        {"model.a": 5, "model.b": "x"},
        {"model.a": 5, "model.b": "y"},
    ]
    assert setting_list({}) == [{}]


def test_draws_are_seeded_within_bounds_and_never_twice():
    space = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "k": {"low": 1, "high": 4, "whole": True}, "d": [0.1, 0.2]}
    found = setting_list({"space": space, "trials": 200})
    assert found == setting_list({"space": space, "trials": 200})
    assert found != setting_list({"space": space, "trials": 200, "seed": 1})
    assert found[:3] == setting_list({"space": space, "trials": 3})
    rates = np.array([one["lr"] for one in found])
    assert (rates >= 1e-4).all()
    assert (rates <= 1e-2).all()
    assert 0.35 < (rates < 1e-3).mean() < 0.65  # the middle of the logarithms
    assert {one["k"] for one in found} == {1, 2, 3, 4}
    assert len({json.dumps(one) for one in found}) == 200
    few = setting_list({"space": {"d": [0.1, 0.2], "e": [1, 2]}, "trials": 3})
    assert len({json.dumps(one) for one in few}) == 3
    assert len(setting_list({"space": {"d": [0.1, 0.2]}, "trials": 4})) == 2


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"space": {"lr": {"low": 1, "high": 2}}}, "`sweep.trials`: must be given where a range is drawn from"),
        ({"space": {"lr": {"low": 2, "high": 1}}}, "`low` must be smaller than `high`"),
        ({"space": {"lr": {"low": 0, "high": 1, "log": True}}}, "`low` must be above 0 where `log` is true"),
        ({"space": {"lr": []}}, "at least 1 item"),
        ({"models": {"a b": {}, "a/b": {}}}, "names must differ in letters and digits"),
        ({"trails": 3}, r"unknown key; did you mean `trials`\?"),
    ],
)
def test_mistakes_in_the_section_are_told(section, message):
    with pytest.raises(UsageError, match=message):
        setting_list(section)
