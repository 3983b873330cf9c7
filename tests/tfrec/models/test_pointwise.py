"""The ranking models that see a history as one vector."""

from functools import cache

import numpy as np
import pytest

from tests.checks import check_ranking_model, compiled, gradients, randomise, seed_weights, to_numpy
from tests.tfrec.models.made import NUM_ITEMS, SIZES, make_catalogue, make_ranking_batch, make_schema
from tfrec.errors import UsageError
from tfrec.models import build

LABELS = ("click", "cart")
NAMES = ("dcn_v2", "din", "dnn", "mmoe", "wukong")
D, FIELDS = 8, 4 + 1 + 1  # the item's features, the history, the user's feature
FLAT = FIELDS * D
SMALL = {"embedding_dim": D, "history_length": 16, "dropout": 0.0}
OPTIONS = {
    "dcn_v2": {"num_cross_layers": 2, "hidden_units": (6,)},
    "din": {"attention_units": (5,), "hidden_units": (6,)},
    "dnn": {"hidden_units": (6,)},
    "mmoe": {"num_experts": 3, "expert_units": (12, 8), "hidden_units": (6,)},
    "wukong": {
        "num_interactions": 2,
        "num_compressed": 3,
        "rank": 2,
        "block_units": (5,),
        "hidden_units": (6,),
    },
}


def make(name, schema=None, *, labels="all", random=False, **options):
    seed_weights(0)
    schema = schema or make_schema(labels=LABELS)
    model = build(schema, {"name": name, **SMALL, **OPTIONS[name], **options}, labels=labels)
    model.set_catalogue(*make_catalogue())
    if random:
        randomise(model)
    return model


def logits(model, batch, label="click"):
    return to_numpy(model(batch)[label])


def dense(inputs, outputs):
    return inputs * outputs + outputs


def expected_parameters(name):
    items = (NUM_ITEMS + SIZES["brand"] + SIZES["tags"]) * D + 2 * (2 + 3**2) * D // 2
    inputs = items + (2 + 2 + SIZES["device"] + SIZES["segment"]) * D  # event types, event and user features
    places = 21 * 2
    head = dense(6, 2)
    if name == "dnn":
        return inputs + places + dense(FLAT, 6) + head
    if name == "dcn_v2":
        return inputs + places + 2 * dense(FLAT, FLAT) + dense(FLAT, 6) + head
    if name == "din":
        attention = dense(4 * D, 5) + 5 + dense(5, 1)
        return inputs + places + attention + dense(FLAT, 6) + 6 + head
    if name == "mmoe":
        experts = 3 * (dense(FLAT, 12) + dense(12, 8)) + FLAT * 3 * 2
        return inputs + places + experts + 2 * (dense(8, 6) + dense(6, 1))

    def block(fields):
        machine = fields * 2 + 2 * fields * 2 + dense(fields * 2, 5) + dense(5, 2 * D)
        return machine + fields * 3 + 2 * D + (0 if fields == 5 else fields * 5)

    return inputs + places + block(FIELDS) + block(5) + dense(5 * D, 6) + head


@pytest.mark.jax
@pytest.mark.parametrize("name", NAMES)
def test_battery(name, tmp_path):
    schema = make_schema(labels=LABELS)
    check_ranking_model(
        make(name),
        [make_ranking_batch(schema, 24, 8, 3), make_ranking_batch(schema, 24, 8, 3, 1, by_user=True)],
        parameters=expected_parameters(name),
        tmp_path=tmp_path,
        rebuild=lambda: make(name),
    )


CHANGES = {
    "dcn_v2": [{"num_cross_layers": 1}, {"rank": 2}, {"rank": 2, "num_experts": 2}, {"structure": "parallel"}],
    "din": [{"attention_units": (4,)}, {"attention_softmax": True}, {"activation": "prelu"}],
    "dnn": [{"activation": "dice"}],
    "mmoe": [{"num_experts": 2}, {"expert_units": (4,)}],
    "wukong": [
        {"num_blocks": 1},
        {"num_interactions": 3},
        {"num_compressed": 2},
        {"rank": 1},
        {"block_units": ()},
    ],
}
COMMON = [
    {"hidden_units": (4,)},
    {"activation": "tanh"},
    {"item_features": ("item_id", "brand")},
    {"user_features": False},
    {"event_types": False},
]


@cache
def plain_logits(name, training):
    batch = make_ranking_batch(make_schema(labels=LABELS), 6, 8, 3)
    return to_numpy(make(name, random=True)(batch, training=training)["click"])


@pytest.mark.parametrize(("name", "changes"), [(name, change) for name in NAMES for change in CHANGES[name] + COMMON])
def test_every_option_changes_the_model(name, changes):
    batch = make_ranking_batch(make_schema(labels=LABELS), 6, 8, 3)
    changed = logits(make(name, random=True, **changes), batch)
    assert np.abs(changed - plain_logits(name, False)).max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_dropout_of_units_and_ids_changes_training_alone(name):
    batch = make_ranking_batch(make_schema(labels=LABELS), 6, 8, 3)
    for changes in ({"dropout": 0.5}, {"item_id_dropout": 0.5}):
        changed = make(name, random=True, **changes)
        np.testing.assert_allclose(logits(changed, batch), plain_logits(name, False), atol=1e-5)
        trained = to_numpy(changed(batch, training=True)["click"])
        assert np.abs(trained - plain_logits(name, True)).max() > 1e-4


@pytest.mark.jax
@pytest.mark.parametrize("name", NAMES)
def test_every_weight_learns_and_rows_without_history_or_candidates_do_no_harm(name):
    schema = make_schema(labels=LABELS)
    model, batch = make(name, random=True), make_ranking_batch(schema, 12, 8, 3)
    for key in batch:
        if key.startswith("candidate"):
            batch[key][1] = 0
    batch = model.objective.prepare(batch, np.random.default_rng(0))
    found = gradients(model, lambda: model.compute_loss(x=batch, y_pred=model(batch, training=True)))
    for path, gradient in found.items():
        assert gradient is not None, path
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


@pytest.mark.parametrize("name", NAMES)
def test_the_history_and_the_user_count(name):
    model, batch = make(name, random=True), make_ranking_batch(make_schema(labels=LABELS), 6, 8, 3)
    before, real = logits(model, batch), batch["candidate"] > 0
    for key in ("item", "event_type", "event_device", "user_segment"):
        changed = {**batch, key: np.where(batch[key] > 0, 5 - batch[key] % 2 - 2, 0).astype(np.int32)}
        assert np.abs(logits(model, changed) - before)[1:][real[1:]].max() > 1e-4, key


@pytest.mark.jax
@pytest.mark.parametrize("name", NAMES)
def test_logs_with_little_in_them_are_ranked(name):
    schema = make_schema(labels=("click",), has_time=False, event_types=(), context=False)
    model, batch = make(name, schema), make_ranking_batch(schema, 4, 8, 3)
    found = compiled(model)(batch)
    assert set(found) == {"click"}
    assert np.isfinite(found["click"]).all()


def test_labels_that_are_not_asked_for_have_no_head():
    for name in NAMES:
        assert make(name, labels=["cart"]).labels == ("cart",)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dcn_v2", {"num_experts": 2}, "`model`: dcn_v2: `rank` must be given for a mixture."),
        ("mmoe", {"expert_units": ()}, "`model.expert_units`: Tuple should have at least 1 item"),
        ("din", {"activation": "mish2"}, "`model`: din: Could not interpret activation function identifier: mish2"),
        ("wukong", {"rank": 0}, "`model.rank`: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_use_is_one_line(name, changes, message):
    with pytest.raises(UsageError) as error:
        make(name, **changes)
    assert message in str(error.value)
