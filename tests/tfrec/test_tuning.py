import numpy as np
import pytest

from tfrec.errors import UserError
from tfrec.tuning import ScannParameters, check_recall, choose, cost, first_parameters, recall

FIRST = ScannParameters(leaves=100, leaves_to_search=5, reorder=40)


def made_up(parameters):
    """A recall that rises with both numbers; 0.9 of it can be had in many ways."""
    by_leaves = 1 - 0.5 ** (parameters.leaves_to_search / 8)
    return by_leaves * (1 - 0.5 ** (parameters.reorder / 20))


@pytest.mark.parametrize("target", [0.5, 0.9, 0.99])
def test_what_is_chosen_reaches_the_target_and_one_step_less_does_not(target):
    asked = []

    def measure(parameters):
        asked.append(parameters)
        return made_up(parameters)

    chosen = choose(FIRST, 10_000, 10, target, measure)
    assert made_up(chosen) >= target
    fewer = [each for each in asked if each.reorder == chosen.reorder and cost(each, 10_000) < cost(chosen, 10_000)]
    assert all(made_up(each) < target for each in fewer)
    reaching = [each for each in asked if made_up(each) >= target]
    assert cost(chosen, 10_000) == min(cost(each, 10_000) for each in reaching)
    assert len(asked) < 100


def test_unreachable_target_gives_the_widest_search():
    chosen = choose(FIRST, 500, 10, 0.9, lambda parameters: 0.3)
    assert chosen == ScannParameters(leaves=100, leaves_to_search=100, reorder=500)


def test_small_catalogues_have_no_tree():
    assert first_parameters(9_999, 64, 10) == ScannParameters(0, 0, 0)
    assert first_parameters(20_000, 1, 10) == ScannParameters(0, 0, 0)
    assert first_parameters(10_000, 2, 10).leaves == 100
    assert choose(ScannParameters(0, 0, 0), 500, 10, 0.9, made_up) == ScannParameters(0, 0, 0)


def test_recall_by_hand():
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall(truth, np.array([[4, 9, 2, -1], [8, 7, 6, 5]])) == 6 / 8


def test_low_recall_is_told_how_to_rise():
    assert check_recall(0.9, 0.9, "gate", "target") is None
    with pytest.raises(UserError, match=r"recall of ScaNN is 0\.500, `gate` asks for 0\.9; raise `target`"):
        check_recall(0.5, 0.9, "gate", "target")
