"""The ranking models that read histories as sequences."""

import functools

import numpy as np
import pytest
from keras import ops

from tests.checks import (
    check_ranking_model,
    compiled,
    count_parameters,
    gradients,
    learn,
    randomise,
    seed_weights,
    to_numpy,
)
from tests.tfrec.models.made import NUM_ITEMS, SIZES, make_catalogue, make_ranking_batch, make_schema
from tfrec.errors import UsageError
from tfrec.models import build

LABELS = ("click", "buy")
SMALL = {"embedding_dim": 8, "history_length": 16, "num_blocks": 1, "dropout": 0.0, "hidden_units": [6]}
ANYWHERE = {  # options with which candidates may stand inside the history
    "gru4rec_ranking": {"units": 12},
    "hpgr": {"session_causal": True},
    "hstu_ranking": {"position": "shared"},
    "mtgr": {"realtime_events": None},
    "sasrec_ranking": {},
}
SPARSE = {"scope": "all", "sparse": True, "num_anchors": 2, "sigma": 0.3, "num_blocks": 2}  # the second sees scopes
AFTER = {"bert4rec_ranking": {}, "hpgr": SPARSE, "hstu_ranking": {}, "mtgr": {"realtime_events": 3}}


def make_ranking_schema(**options):
    return make_schema(labels=LABELS, **options)


def make(name, schema=None, *, random=True, objective=None, **options):
    seed_weights(0)
    model = build(schema or make_ranking_schema(), {"name": name, **SMALL, **options}, objective, labels=LABELS)
    model.set_catalogue(*make_catalogue())
    if random:
        randomise(model, scale=0.2)
    return model


def logits_of(model, batch):
    return np.stack(list(compiled(model)(batch).values()))


def block_parameters(width, inner):
    return (width * 3 * width + 3 * width) + (width * width + width) + 2 * width * inner + inner + width + 4 * width


def expected_parameters(name, num_blocks=1, width=8):
    d = width
    items = (NUM_ITEMS + SIZES["brand"] + SIZES["tags"]) * d + 2 * (2 + 3**2) * d // 2
    inputs = items + (4 + SIZES["device"] + SIZES["segment"]) * d
    places = (20 + 1) * 2

    def head(wide):
        return wide * 6 + 6 + 6 * 2 + 2 + places

    if name == "gru4rec_ranking":
        return inputs + 3 * (d * 12 + 12 * 12 + 2 * 12) + 12 * d + d + head(4 * d)
    if name == "sasrec_ranking":
        return inputs + 16 * d + block_parameters(d, d) + head(4 * d)
    if name == "bert4rec_ranking":
        return inputs + 17 * d + d + block_parameters(d, 4 * d) + head(4 * d)
    if name == "mtgr":
        mixing = 4 * d * d + d + d * d + d  # four tokens to one
        block = (d * 4 * d + 4 * d) + 2 * 4 * 2 * d + 2 * (d * d + d)
        return inputs + 16 * d + mixing + block + head(d)
    block = (d * 4 * d + 4 * d) + 2 * d + 2 * d + 3 * d * d
    plain = inputs + d + 18 * d + 2048 * d + num_blocks * block + 2 * d + head(d)
    if name == "hstu_ranking":
        return plain
    sessions = 2 * 17 * d + d + 2 * block_parameters(d, 4 * d)
    return plain + 17 + 129 + sessions


@pytest.mark.jax
@pytest.mark.parametrize(("name", "by_user"), [*((n, True) for n in ANYWHERE), *((n, False) for n in AFTER)])
def test_model_battery(name, by_user, tmp_path):
    schema = make_ranking_schema()
    options = (ANYWHERE if by_user else AFTER)[name]
    batches = [make_ranking_batch(schema, 24, 8, 3, by_user=by_user), make_ranking_batch(schema, 24, 8, 3, 1)]
    model = make(name, schema, random=False, **options)
    assert model.causal is by_user
    extra = 2 * 8 if name == "hpgr" and not by_user else 0  # the two [CLS]
    check_ranking_model(
        model,
        batches,
        parameters=expected_parameters(name, options.get("num_blocks", 1)) + extra,
        tmp_path=tmp_path,
        rebuild=lambda: make(name, schema, **options),
    )


COMMON = [
    {"item_features": ("item_id", "brand")},
    {"user_features": False},
    {"event_types": False},
    {"hidden_units": ()},
]
SEQUENCE = [*COMMON, {"num_blocks": 3}, {"num_heads": 4}, {"intermediate_dim": 5}, {"position_embedding": False}]
TARGET = [
    *COMMON,
    {"num_blocks": 3},
    {"num_heads": 4},
    {"key_dim": 3},
    {"value_dim": 3},
    {"alpha": 3.0},
    {"group_norm": True},
    {"position": "shared"},
    {"time_embedding": False},
]
CHANGES = {
    "bert4rec_ranking": [*SEQUENCE, {"activation": "relu"}],
    "gru4rec_ranking": [*COMMON, {"num_blocks": 2}, {"units": 5}],
    "hpgr": [
        *TARGET,
        {"position": "backward"},
        {"relative_bias": False},
        {"preference_attention": False},
        {"num_anchors": 1},
        {"sigma": 2.0},
        {"cut": 1.0},
        {"similarity": "cosine"},
        {"combine": "sum"},
        {"scope": "all"},
        {"preference_embeddings": "live"},
        {"session_enhancement": False},
        {"session_pooling": "mean"},
        {"session_causal": True},
        {"num_intra_blocks": 2},
        {"num_inter_blocks": 2},
        {"intermediate_dim": 5},
    ],
    "hstu_ranking": [*TARGET, {"position": "time_aware"}, {"relative_bias": True}],
    "mtgr": [*SEQUENCE, {"realtime_events": None}, {"realtime_events": 0}],
    "sasrec_ranking": [*SEQUENCE, {"activation": "gelu"}],
}
FEW = {"hpgr": {"num_anchors": 2, "sigma": 0.7, "num_blocks": 2}, "mtgr": {"realtime_events": 3, "num_blocks": 2}}


@functools.cache
def plain_logits(name):
    return logits_of(make(name, **FEW.get(name, {})), make_ranking_batch(make_ranking_schema(), 6, 16, 3))


@pytest.mark.parametrize(
    ("name", "change"), [(name, change) for name, changes in CHANGES.items() for change in changes], ids=str
)
def test_every_option_changes_the_model(name, change):
    changed = logits_of(
        make(name, **{**FEW.get(name, {}), **change}), make_ranking_batch(make_ranking_schema(), 6, 16, 3)
    )
    assert np.abs(changed - plain_logits(name)).max() > 1e-5  # float32 noise is below 1e-6


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("option", ["dropout", "item_id_dropout"])
def test_dropout_changes_training_alone(name, option):
    model, batch = make(name, **{option: 0.5}), make_ranking_batch(make_ranking_schema(), 4, 8, 3)
    still = to_numpy(model(batch)["click"])
    np.testing.assert_array_equal(to_numpy(model(batch)["click"]), still)
    assert np.abs(to_numpy(model(batch, training=True)["click"]) - still).max() > 1e-3


@pytest.mark.parametrize("name", CHANGES)
def test_places_of_impressions_are_biases_of_training(name):
    with_places, without = make(name), make(name, num_positions=0)
    tables = [
        [weight for weight in model.weights if "position_bias" in weight.path] for model in (with_places, without)
    ]
    assert [len(found) for found in tables] == [1, 0]
    assert tables[0][0].shape == (21, 2)
    batch = make_ranking_batch(make_ranking_schema(), 4, 8, 3)
    trained = with_places(batch, training=True)["buy"] - with_places(batch)["buy"]
    bias = to_numpy(tables[0][0])[:, 1]
    np.testing.assert_allclose(
        to_numpy(trained),
        bias[batch["candidate_position"]] - bias[1] * (batch["candidate"] > 0) - bias[0] * (batch["candidate"] == 0),
        atol=1e-5,
    )
    places = np.stack([batch["candidate_position"], np.ones_like(batch["candidate"])], axis=-1)
    compared = to_numpy(with_places({**batch, "compared_position": places})["buy"])
    expected = bias[batch["candidate_position"]] - bias[1]
    np.testing.assert_allclose(compared[..., 0] - compared[..., 1], expected, atol=1e-5)


NEXT_ITEM = {"next_item_weight": 0.5, "num_negatives": 30}
WITHOUT_STATES = [
    ("bert4rec_ranking", {}),
    ("mtgr", {"realtime_events": 0}),
    ("hpgr", {"session_causal": False}),
    ("hpgr", {"session_causal": True, "scope": "all"}),
    ("mtgr", {"realtime_events": 2}),
]


@pytest.mark.parametrize("name", [name for name in ANYWHERE if name != "hpgr"])  # it shares its scorer with HSTU
def test_histories_learn_their_next_items_where_asked_for(name):
    schema, options = make_ranking_schema(), ANYWHERE[name]
    model = make(name, schema, objective=NEXT_ITEM, random=False, **options)
    assert count_parameters(model) == count_parameters(make(name, schema, **options))
    batch = make_ranking_batch(schema, 32, 8, 3)
    batch["target_mask"] = batch["item"] != 0
    found = learn(model, [batch])
    assert set(found) >= {"loss_click", "loss_buy", "loss_next_item"}
    assert found["loss_next_item"][-1] < 0.9 * found["loss_next_item"][0]


@pytest.mark.parametrize("name", ANYWHERE)
def test_states_of_histories_see_no_later_event(name):
    model, batch = make(name, objective=NEXT_ITEM, **ANYWHERE[name]), make_ranking_batch(make_ranking_schema(), 4, 8, 3)
    batch["item"][1:, :] = np.maximum(batch["item"][1:, :], 2)
    states = to_numpy(model(batch, training=True)["states"])
    later = {key: value.copy() for key, value in batch.items()}
    later["item"][:, 5] = 3 + later["item"][:, 5] % 7
    changed = to_numpy(model(later, training=True)["states"])
    assert states.shape == (4, 8, 8)
    np.testing.assert_array_equal(changed[1:, :5], states[1:, :5])
    assert np.abs(changed - states)[1:, 5].max() > 1e-4


@pytest.mark.parametrize(("name", "options"), WITHOUT_STATES)
def test_models_without_such_states_refuse_the_loss_of_the_next_item(name, options):
    with pytest.raises(UsageError, match=r"`objective\.next_item_weight` must be 0: it has no states"):
        make(name, objective=NEXT_ITEM, **options)


@pytest.mark.jax
@pytest.mark.parametrize("scope", ["candidate", "all"])
def test_the_sparse_path_of_hpgr_is_the_dense_one(scope):
    schema = make_ranking_schema()
    options = {**SPARSE, "scope": scope, "num_blocks": 2 if scope == "all" else 1}
    dense, sparse = (make("hpgr", schema, **{**options, "sparse": each}) for each in (False, True))
    batch = make_ranking_batch(schema, 6, 16, 3)
    assert dense.scorer.guide.attention.max_places == 6 < 16
    for one, other in zip(dense.weights, sparse.weights, strict=True):
        other.assign(one)
    logits = logits_of(dense, batch)
    np.testing.assert_allclose(logits_of(sparse, batch), logits, atol=1e-5)
    slopes = [
        gradients(model, lambda model=model: sum(ops.sum(ops.square(logit)) for logit in model(batch).values()))
        for model in (dense, sparse)
    ]
    for path, slope in slopes[0].items():
        np.testing.assert_allclose(
            slopes[1][path], slope, rtol=1e-4, atol=1e-5 * max(1, np.abs(slope).max()), err_msg=path
        )


@pytest.mark.parametrize("scope", ["candidate", "all"])
def test_attention_is_guided(scope):
    model, batch = make("hpgr", **{**SPARSE, "scope": scope}), make_ranking_batch(make_ranking_schema(), 6, 16, 3)
    logits = logits_of(model, batch)
    model.scorer.guide = None
    assert np.abs(logits_of(model, batch) - logits).max() > 1e-3


@pytest.mark.jax
def test_a_mask_of_ones_leaves_attention_as_it_is():
    schema = make_ranking_schema()
    batch = make_ranking_batch(schema, 6, 8, 3)
    wide = make("hpgr", schema, num_anchors=8, sigma=50.0)
    without = make("hpgr", schema, preference_attention=False)
    for scorer in (wide.scorer, without.scorer):
        randomise(scorer)  # in the same order
    assert compiled(wide, training=True)(batch)["preference_mask"] > 0.99
    np.testing.assert_allclose(logits_of(wide, batch), logits_of(without, batch), atol=1e-4)


def test_the_mean_of_the_mask_is_over_events_before_real_candidates():
    model, batch = make("hpgr", num_anchors=1, sigma=1.0), make_ranking_batch(make_ranking_schema(), 6, 8, 3)
    mask = to_numpy(model.scorer.attention_mask(batch))
    visible = np.arange(8) < batch["candidate_history"][..., None]
    assert not mask[~visible].any()
    measured = float(model(batch, training=True)["preference_mask"])
    assert measured == pytest.approx(mask[visible].mean(), abs=1e-6)
    assert 0 < measured < 0.9
    assert make("hstu_ranking").scorer.attention_mask(batch) is None


def test_frozen_embeddings_are_no_trained_weights():
    frozen, live = make("hpgr"), make("hpgr", preference_embeddings="live")
    assert len(frozen.trainable_weights) == len(live.trainable_weights)
    kept = [weight.path for weight in frozen.weights if "frozen_embedder" in weight.path]
    assert len(kept) == len(frozen.scorer.inputs.embedder.trainable_weights)
    assert not any("frozen_embedder" in weight.path for weight in live.weights)


def test_rows_of_users_need_models_that_see_no_later_event():
    causal = {
        ("hstu_ranking", "position", "backward"): False,
        ("hstu_ranking", "position", "time_aware"): True,
        ("hpgr", "session_causal", False): False,
        ("hpgr", "session_causal", True): True,
        ("hpgr", "session_enhancement", False): True,
        ("mtgr", "realtime_events", 10): False,
        ("mtgr", "realtime_events", None): True,
    }
    for (name, option, value), expected in causal.items():
        assert make(name, random=False, **{option: value}).causal is expected


@pytest.mark.parametrize("name", CHANGES)
def test_logs_without_times_and_types_are_ranked(name):
    schema = make_ranking_schema(has_time=False, event_types=(), context=False)
    model, batch = make(name, schema), make_ranking_batch(schema, 4, 8, 3)
    assert "candidate_time" not in batch
    assert np.isfinite(logits_of(model, batch)).all()


def test_what_a_log_has_not_is_refused():
    schema = make_ranking_schema(has_time=False)
    with pytest.raises(UsageError, match="`time_embedding` must be false or left out: the log has no times"):
        make("hstu_ranking", schema, time_embedding=True)
    with pytest.raises(UsageError, match="`session_enhancement` must be false: the log has no sessions"):
        make("hpgr", schema.model_copy(update={"has_sessions": False}))
    with pytest.raises(UsageError, match="`cut` must be a number where `sparse` is true"):
        make("hpgr", sparse=True, cut=None)
