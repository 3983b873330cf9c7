import keras
import pytest

from tfrec.errors import UsageError
from tfrec.objectives import OBJECTIVES, build_objective

pytestmark = pytest.mark.jax

OPTIONS = {
    "binary_crossentropy": {"label_weights": {"click": 1.0, "cart": 0.5}},
    "dense_all_action": {"horizon_days": 7.0, "horizon_events": 4, "learn_temperature": False, "negatives": "uniform"},
    "full_softmax": {"temperature": 0.1},
    "in_batch_softmax": {"negatives": "mixed", "num_negatives": 7, "temperature": 0.1, "log_q": False},
    "listwise_multi_step": {"num_steps": 2, "margin": 0.5, "token_weight": 0.25, "negatives": "full"},
    "masked_item": {
        "mask_ratio": 0.3,
        "session_ratio": 0.1,
        "last_ratio": 0.5,
        "negatives": "uniform",
        "num_negatives": 9,
    },
    "multi_step": {"num_steps": 4, "negatives": "same_step", "null_logit": False},
    "retrieval": {
        "temperature": 0.1,
        "num_uniform_negatives": 3,
        "log_q": False,
        "remove_accidental_hits": False,
        "mask_own": False,
        "num_hard_negatives": 4,
        "group_size": 9,
    },
    "sampled_softmax": {"num_negatives": 5, "negatives": "shared"},
}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_comes_back_from_its_config(name):
    objective = build_objective({"name": name, **OPTIONS[name]})
    config = objective.get_config()
    assert {key: config[key] for key in OPTIONS[name]} == OPTIONS[name]
    again = type(objective).from_config(config)
    assert again.get_config() == config


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_objectives_compute_in_single_precision_whatever_the_policy(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert build_objective({"name": name}).compute_dtype == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


def test_the_default_stands_in_and_takes_options():
    default = {"name": "full_softmax", "temperature": 0.2}
    assert build_objective(None, default).temperature == 0.2
    assert build_objective({"temperature": 0.3}, default).temperature == 0.3
    assert build_objective({"name": "sampled_softmax"}, default).temperature == 0.05


def test_an_objective_may_come_from_elsewhere():
    objective = build_objective({"name": "tfrec.objectives.full_softmax:FullSoftmax"})
    assert type(objective).__name__ == "FullSoftmax"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "sampled_softmaks"}, "unknown objective 'sampled_softmaks'; did you mean `sampled_softmax`?"),
        (
            {"name": "full_softmax", "temprature": 1},
            "`objective.temprature`: unknown option of full_softmax; did you mean `temperature`?",
        ),
        (
            {"name": "full_softmax", "temperature": -1},
            "`objective`: full_softmax: `temperature` must be a positive number",
        ),
        ({}, "`objective.name`: must be given; known: binary_crossentropy, dense_all_action, full_softmax"),
        ({"name": "nowhere.to:Be"}, "nowhere.to:Be cannot be imported"),
    ],
)
def test_mistakes_get_one_line(section, message):
    with pytest.raises(UsageError) as caught:
        build_objective(section)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
