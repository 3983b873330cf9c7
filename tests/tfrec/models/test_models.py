import functools

import keras
import numpy as np
import pytest

from tests.checks import check_model, gradients, randomise, seed_weights, to_numpy
from tests.tfrec.models.made import NUM_ITEMS, SIZES, make_batch, make_catalogue, make_query, make_schema
from tfrec.errors import UsageError
from tfrec.models import build

NEXT_ITEM = ("gru4rec", "heterrec", "hstu", "pinnerformer", "sasrec", "two_tower")
MASKED = ("bert4rec", "hpgr_pretrain")
TRAINED = (*NEXT_ITEM, *MASKED)
RETRIEVAL = (*TRAINED, "popularity")
SMALL = {
    "bert4rec": {"embedding_dim": 8, "history_length": 16, "dropout": 0.0},
    "gru4rec": {"embedding_dim": 8, "history_length": 16, "units": 12, "dropout": 0.0},
    "hpgr_pretrain": {"embedding_dim": 8, "history_length": 16, "dropout": 0.0},
    "heterrec": {
        "embedding_dim": 8,
        "history_length": 16,
        "intermediate_dim": 12,
        "num_token_blocks": 1,
        "num_item_blocks": 1,
        "dropout": 0.0,
    },
    "hstu": {"embedding_dim": 8, "history_length": 16, "dropout": 0.0},
    "pinnerformer": {"embedding_dim": 8, "history_length": 16, "dropout": 0.0},
    "sasrec": {"embedding_dim": 8, "history_length": 16, "dropout": 0.0},
    "popularity": {"history_length": 16},
    "two_tower": {"embedding_dim": 8, "history_length": 16, "tower_units": [12], "dropout": 0.0},
}
ONLY_TENSORFLOW = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="its task is TensorFlow's")
LEARNERS = [pytest.param(name, marks=ONLY_TENSORFLOW if name == "two_tower" else ()) for name in TRAINED]


def make(name, schema=None, objective=None, *, request_time=False, random=True, **options):
    seed_weights(0)
    model = build(
        schema or make_schema(), {"name": name, **SMALL[name], **options}, objective, request_time=request_time
    )
    model.set_catalogue(*make_catalogue())
    if random:
        randomise(model, scale=0.2)
    return model


def encode(model, query):
    return to_numpy(model.encode_users(query))


def block_parameters(width, inner):
    return (width * 3 * width + 3 * width) + (width * width + width) + 2 * width * inner + inner + width + 4 * width


def expected_parameters(name):
    d, types, device, segment = 8, 4, SIZES["device"], SIZES["segment"]
    inputs = 16 * d + (types + device) * d  # positions, event types, the event feature
    if name == "gru4rec":
        recurrence = 3 * (d * 12 + 12 * 12 + 2 * 12)
        return inputs - 16 * d + NUM_ITEMS * d + recurrence + 12 * d + d
    if name in MASKED:
        plain = inputs + d + d + NUM_ITEMS * d + 2 * block_parameters(d, 4 * d)  # a place and a vector for the mask
        sessions = 2 * 17 * d + 3 * d + 2 * block_parameters(d, 4 * d)
        return plain + sessions if name == "hpgr_pretrain" else plain
    if name == "sasrec":
        return inputs + NUM_ITEMS * d + 2 * block_parameters(d, d)
    if name == "hstu":
        block = d * 4 * d + (d * d + d) + (2 * 16 - 1) + 129
        return inputs + NUM_ITEMS * d + 2 * block
    features = (NUM_ITEMS + SIZES["brand"] + SIZES["tags"]) * d + 2 * (2 + 3**2) * d // 2
    if name == "two_tower":  # no positions; towers over history, event and user, and over four features
        towers = (3 * d * 12 + 12) + (4 * d * 12 + 12) + 2 * (12 * d + d)
        return inputs - 16 * d + segment * d + features + towers
    if name == "pinnerformer":
        return inputs + features + (2 * 5 + 1) * d + d + 2 * block_parameters(d, 4 * d)
    blocks = 2 * (block_parameters(d, 12) + 129 * 2)
    fusion = (4 * d * 12 + 12) + (12 * d + d)
    tower = 4 * 2 * (d * d + d) + fusion
    return inputs + segment * d + features + blocks + fusion + d * d + tower


OBJECTIVES = {
    "bert4rec": {"mask_ratio": 0.3},
    "gru4rec": {"temperature": 0.1},
    "hpgr_pretrain": {"negatives": "uniform", "num_negatives": 32},
    "heterrec": {"token_weight": 0.1, "num_negatives": 64, "num_token_negatives": 16},
    "hstu": {"num_negatives": 32},
    "pinnerformer": {"num_negatives": 32},
    "sasrec": {"num_negatives": 32},
    "two_tower": {"num_uniform_negatives": 32},
}


@pytest.mark.jax
@pytest.mark.parametrize("name", LEARNERS)
def test_model_battery(name, tmp_path):
    schema = make_schema()
    batches = [make_batch(schema, 64, 16), make_batch(schema, 64, 8, seed=1)]
    model = make(name, schema, OBJECTIVES[name], random=False)
    objective = sum(int(np.prod(weight.shape)) for weight in model.objective.trainable_weights)
    # HeterRec: a matrix a step and token type, and for steps 2 and 3; PinnerFormer: its temperature
    steps = {"heterrec": 3 * 4 * 8 * 8 + 2 * 8 * 8, "pinnerformer": 1}.get(name, 0)
    assert objective == steps
    check_model(
        model,
        batches,
        parameters=expected_parameters(name) + steps,
        tmp_path=tmp_path,
        rebuild=lambda: make(name, schema, OBJECTIVES[name]),
    )


@pytest.mark.jax
@pytest.mark.parametrize("name", NEXT_ITEM)
def test_outputs_are_declared_and_of_length_one(name):
    model, schema = make(name), make_schema()
    batch = make_batch(schema, 5, 8)
    output = model(batch)
    valid = batch["item"][:, :-1] > 0
    np.testing.assert_allclose(np.linalg.norm(to_numpy(output["state"]), axis=-1), valid, atol=1e-5)
    items = model.item_encoder(np.array([2, 3, NUM_ITEMS + 5], np.int32))
    np.testing.assert_allclose(np.linalg.norm(to_numpy(items["vector"]), axis=-1), 1, atol=1e-5)
    if name == "heterrec":
        assert output["token"].shape == (5, 8, 4, 8)
        assert items["token"].shape == (3, 4, 8)


@pytest.mark.jax
@pytest.mark.parametrize("name", [*NEXT_ITEM, "popularity"])
def test_a_later_event_changes_no_earlier_state(name):
    model, batch = make(name), make_batch(make_schema(), 4, 8)
    batch["item"][0] = np.arange(2, 11)
    before = to_numpy(model(batch)["state"])
    for place in (1, 4, 7):
        changed = {key: value.copy() for key, value in batch.items()}
        for key in ("item", "event_type", "event_device"):
            changed[key][0, place] = 3 if changed[key][0, place] != 3 else 2
        changed["time"][0, place] += 500
        after = to_numpy(model(changed)["state"])
        np.testing.assert_array_equal(after[0, :place], before[0, :place])
        if name != "popularity":
            assert np.abs(after[0, place:] - before[0, place:]).max() > 1e-4


@pytest.mark.jax
@pytest.mark.parametrize("name", NEXT_ITEM)
@pytest.mark.parametrize("request_time", [False, True])
def test_the_last_training_state_is_what_is_served(name, request_time):
    schema = make_schema()
    model, batch = make(name, schema, request_time=request_time), make_batch(schema, 6, 8)
    lengths = (batch["item"] > 0).sum(axis=1)
    states = to_numpy(model(batch)["state"])
    served = {key: value if key.startswith("user_") else value.copy() for key, value in batch.items()}
    rows = np.arange(6)
    served["request_time"] = batch["time"][rows, lengths - 1]
    for key in ("item", "time", "event_type", "event_device", "session"):
        served[key][rows, lengths - 1] = 0  # the last event is the target
    np.testing.assert_allclose(encode(model, served), states[rows, lengths - 2], atol=1e-6)


@pytest.mark.parametrize("name", ["heterrec", "hstu"])
def test_request_time_is_seen_only_where_asked_for(name):
    query = make_query(make_schema())
    later = {**query, "request_time": query["request_time"] + 10_000_000}
    without, with_time = make(name), make(name, request_time=True)
    np.testing.assert_array_equal(encode(without, later), encode(without, query))
    assert np.abs(encode(with_time, later) - encode(with_time, query)).max() > 1e-4


@pytest.mark.parametrize("name", RETRIEVAL)
def test_padding_rows_are_zero_and_padding_columns_change_nothing(name):
    model, query = make(name), make_query(make_schema())
    query = {key: value.copy() for key, value in query.items()}
    for key in ("item", "time", "event_type", "event_device", "session"):
        query[key][2] = 0
    states = encode(model, query)
    assert not states[2].any()
    wide = {key: np.pad(value, ((0, 0), (0, 5))) if value.ndim == 2 else value for key, value in query.items()}
    np.testing.assert_allclose(encode(model, wide), states, atol=1e-6)


@pytest.mark.jax
@pytest.mark.parametrize("name", LEARNERS)
def test_gradients_are_finite_with_rows_of_padding(name):
    model, batch = make(name, objective=OBJECTIVES[name]), make_batch(make_schema(), 6, 8)
    batch = {key: value.copy() for key, value in batch.items()}
    for key in ("item", "time", "event_type", "event_device", "session", "target_mask"):
        batch[key][2] = 0
    prepared = model.objective.prepare(batch, np.random.default_rng(0))
    found = gradients(model, lambda: model.compute_loss(x=prepared, y_pred=model(prepared, training=True)))
    for path, gradient in found.items():
        assert gradient is not None, path
        assert np.isfinite(gradient).all(), path
    reached = [path for path, gradient in found.items() if np.abs(gradient).max() > 0]
    assert len(reached) == len(found)


@pytest.mark.jax
@pytest.mark.parametrize("name", RETRIEVAL)
def test_logs_without_times_and_types_are_served(name):
    schema = make_schema(has_time=False, event_types=(), context=False)
    model, batch = make(name, schema), make_batch(schema, 4, 8)
    assert model(batch)["state"].shape[:2] == (4, 9 if name in MASKED else 8)
    assert np.isfinite(encode(model, make_query(schema))).all()
    assert not any("gap_bias" in weight.path or "event" in weight.path for weight in model.weights)


@pytest.mark.parametrize("name", ["heterrec", "hstu"])
def test_time_bias_without_times_is_refused(name):
    with pytest.raises(UsageError, match="`time_bias` must be false or left out: the log has no times"):
        make(name, make_schema(has_time=False), time_bias=True)


COMMON = [
    {"position_embedding": False},
    {"normalize": False},
    {"user_features": "add"},
    {"event_types": False},
    {"num_heads": 4},
]
CHANGES = {
    "bert4rec": [
        *COMMON,
        {"user_features": "prefix"},
        {"item_features": "all"},
        {"num_blocks": 1},
        {"intermediate_dim": 5},
        {"activation": "relu"},
    ],
    "gru4rec": [
        *COMMON[1:4],
        {"user_features": "prefix"},
        {"item_features": "all"},
        {"num_blocks": 2},
        {"units": 5},
    ],
    "hpgr_pretrain": [
        *COMMON,
        {"user_features": "prefix"},
        {"item_features": "all"},
        {"num_blocks": 1},
        {"num_intra_blocks": 2},
        {"num_inter_blocks": 2},
        {"intermediate_dim": 5},
        {"activation": "relu"},
        {"session_enhancement": False},
        {"session_pooling": "mean"},
        {"session_causal": True},
    ],
    "pinnerformer": [
        *COMMON,
        {"user_features": "prefix"},
        {"item_features": ["item_id", "brand"]},
        {"num_blocks": 1},
        {"intermediate_dim": 5},
        {"activation": "relu"},
        {"time_encoding": False},
    ],
    "sasrec": [
        *COMMON,
        {"user_features": "prefix"},
        {"item_features": "all"},
        {"item_features": ["item_id", "brand"]},
        {"num_blocks": 1},
        {"intermediate_dim": 5},
        {"activation": "gelu"},
    ],
    "hstu": [
        *COMMON,
        {"user_features": "prefix"},
        {"item_features": "all"},
        {"num_blocks": 3},
        {"key_dim": 3},
        {"value_dim": 3},
        {"position_bias": False},
        {"time_bias": False},
        {"concat_ua": True},
    ],
    "heterrec": [
        *COMMON,
        {"user_features": "none"},
        {"item_features": ["item_id", "image"]},
        {"num_token_blocks": 2},
        {"num_item_blocks": 2},
        {"intermediate_dim": 5},
        {"activation": "gelu"},
        {"time_bias": False},
        {"token_mask": "full"},
        {"norm_first": True},
        {"residual": False},
        {"ablation": "without_htfl"},
        {"ablation": "without_mfk"},
        {"ablation": "without_hct"},
    ],
    "two_tower": [
        {"history_encoder": "gru"},
        {"history_encoder": "transformer"},
        {"tower_units": []},
        {"position_embedding": True},
        {"latest_event": False},
        {"normalize": False},
        {"item_features": ["item_id", "brand"]},
        {"user_features": "none"},
        {"event_types": False},
        {"activation": "gelu"},
    ],
}


@functools.cache
def base_states(name):
    return encode(make(name), make_query(make_schema()))


@pytest.mark.parametrize(
    ("name", "change"), [(name, change) for name, changes in CHANGES.items() for change in changes], ids=str
)
def test_every_option_changes_the_model(name, change):
    difference = np.abs(base_states(name) - encode(make(name, **change), make_query(make_schema())))
    assert difference.max() > 1e-5  # float32 noise is below 1e-6


@pytest.mark.parametrize(
    ("history_encoder", "change"),
    [
        ("gru", {"num_blocks": 2}),
        ("gru", {"intermediate_dim": 5}),
        ("transformer", {"num_blocks": 2}),
        ("transformer", {"intermediate_dim": 5}),
        ("transformer", {"num_heads": 4}),
        ("transformer", {"position_embedding": False}),
    ],
    ids=str,
)
def test_every_option_of_a_history_encoder_changes_two_tower(history_encoder, change):
    query = make_query(make_schema())
    plain, changed = (make("two_tower", history_encoder=history_encoder, **more) for more in ({}, change))
    assert np.abs(encode(plain, query) - encode(changed, query)).max() > 1e-5


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("option", ["dropout", "item_id_dropout"])
def test_dropout_changes_training_alone(name, option):
    model, batch = make(name, **{option: 0.5}), make_batch(make_schema(), 4, 8)
    still = to_numpy(model(batch)["state"])
    np.testing.assert_array_equal(to_numpy(model(batch)["state"]), still)
    assert np.abs(to_numpy(model(batch, training=True)["state"]) - still).max() > 1e-3


def test_history_length_is_the_number_of_places():
    for name in ("sasrec", "heterrec"):
        model = make(name, history_length=9)
        (places,) = [weight.shape[0] for weight in model.weights if "position/embeddings" in weight.path]
        assert model.history_length == places == 9


@pytest.mark.jax
def test_popularity_scores_by_training_events():
    model, query = make("popularity"), make_query(make_schema())
    items = np.array([2, 7, NUM_ITEMS + 3], np.int32)
    assert model.trainable_weights == []
    scores = encode(model, query) @ to_numpy(model.encode_items(items)).T
    np.testing.assert_array_equal(scores, [[6, 21, 3]] * len(query["item"]))  # an unknown item has row 1's count
    with pytest.raises(UsageError, match="`objective` must be left out: popularity is not trained"):
        make("popularity", objective={"name": "sampled_softmax"})


def test_all_tokens_of_an_item_and_user_features_reach_heterrec():
    model, schema = make("heterrec"), make_schema()
    query = make_query(schema)
    states = encode(model, query)
    codes, counts, vectors = make_catalogue()
    for column in range(1, codes.shape[1]):
        other = codes.copy()
        other[2:, column] = np.where(other[2:, column] == 2, 3, 2)
        model.set_catalogue(other, counts, vectors)
        assert np.abs(encode(model, query) - states).max() > 1e-4
    model.set_catalogue(codes, counts, vectors)
    segment = np.where(query["user_segment"] == 2, 3, 2)
    assert np.abs(encode(model, {**query, "user_segment": segment}) - states).max() > 1e-4


def test_heterrec_reads_vectors_only_without_mfk():
    query = make_query(make_schema())
    codes, counts, vectors = make_catalogue()
    for ablation, changes in ((None, False), ("without_mfk", True)):
        model = make("heterrec", ablation=ablation)
        before = encode(model, query)
        model.set_catalogue(codes, counts, {"image": vectors["image"][::-1]})
        assert (np.abs(encode(model, query) - before).max() > 1e-3) is np.bool_(changes)
    with pytest.raises(UsageError, match="must have `keep_vectors: true` for image"):
        make("heterrec", make_schema(keep_vectors=False), ablation="without_mfk")
    with pytest.raises(UsageError, match="must have a feature of vectors"):
        make("heterrec", ablation="without_mfk", item_features=["item_id"])


@pytest.mark.jax
def test_heterrec_token_tables_are_the_tokens_of_items():
    for ablation in (None, "without_htfl", "without_mfk"):
        encoder = make("heterrec", ablation=ablation).item_encoder
        items = np.array([2, 5, 17], np.int32)
        token = to_numpy(encoder(items)["token"])
        tables, codes = encoder.token_tables(), encoder.token_codes(items)
        assert len(tables) == len(codes) == token.shape[1]
        with_table = [k for k, table in enumerate(tables) if table is not None]
        assert with_table == ([] if ablation == "without_htfl" else [0, 1])
        for k in with_table:
            rows = to_numpy(tables[k])[to_numpy(codes[k])[:, 0]]
            np.testing.assert_allclose(rows, token[:, k], atol=1e-6)


@pytest.mark.jax
@pytest.mark.parametrize("ablation", [None, "without_htfl"])
def test_id_dropout_hides_ids_from_vectors_and_not_from_the_token_level(ablation):
    encoder = make("heterrec", item_id_dropout=1.0, ablation=ablation).item_encoder
    items = np.array([2, 5, 17], np.int32)
    still, trained = encoder(items), encoder(items, training=True)
    np.testing.assert_allclose(to_numpy(trained["token"]), to_numpy(still["token"]), atol=1e-6)
    assert np.abs(to_numpy(still["token"])[0, 0] - to_numpy(still["token"])[1, 0]).max() > 1e-2  # ids tell items apart
    assert np.abs(to_numpy(trained["vector"]) - to_numpy(still["vector"])).max(axis=1).min() > 1e-3


@pytest.mark.jax
def test_heterrec_without_htfl_reads_one_token_an_item_and_trains_at_token_level():
    schema, batch = make_schema(), make_batch(make_schema(), 32, 16)
    model = make("heterrec", schema, {**OBJECTIVES["heterrec"], "token_weight": 1.0}, ablation="without_htfl")
    embedder, items = model.item_encoder.embedder, np.array([2, 5, 17], np.int32)
    codes, dense = make_catalogue()[0][items], embedder.concatenation.output_dense
    tables = {name: to_numpy(layer.embeddings.value) for name, layer in embedder.tokens.embeddings.items()}
    tags = [tables["tags"][row[row > 0]].mean(axis=0) if row.any() else np.zeros(8) for row in codes[:, 2:4]]
    image = [np.concatenate([tables["image"][a], tables["image"][11 + b]]) for a, b in codes[:, 4:]]
    joined = np.concatenate([tables["item_id"][codes[:, 0]], tables["brand"][codes[:, 1]], tags, image], axis=1)
    expected = joined @ to_numpy(dense.kernel.value) + to_numpy(dense.bias.value)
    np.testing.assert_allclose(to_numpy(embedder(items))[:, 0], expected, atol=1e-5)

    prepared = model.objective.prepare(batch, np.random.default_rng(0))
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    losses = [model.train_on_batch(prepared, return_dict=True)["token_loss"] for _ in range(30)]
    assert np.mean(losses[-15:]) < 0.8 * losses[0]


@pytest.mark.jax
def test_an_item_without_training_events_is_its_content_where_ids_are_dropped():
    codes, counts, vectors = make_catalogue()
    codes[7, 1:] = codes[9, 1:]  # the same content
    counts = counts + 1
    for rate, untrained, alike in ((0.1, True, True), (0.1, False, False), (0.0, True, False)):
        model = make("heterrec", item_id_dropout=rate)
        model.set_catalogue(codes, np.where(np.isin(np.arange(NUM_ITEMS), (7, 9)) & untrained, 0, counts), vectors)
        first, second = to_numpy(model.encode_items(np.array([7, 9], np.int32)))
        assert (np.abs(first - second).max() < 1e-6) == alike
    model = make("sasrec", item_id_dropout=0.5)  # ids are all that it has
    model.set_catalogue(codes, np.where(np.arange(NUM_ITEMS) == 7, 0, counts), vectors)
    vector = to_numpy(model.encode_items(np.array([1, 7], np.int32)))
    assert np.abs(vector[0] - vector[1]).max() > 1e-3


@pytest.mark.jax
def test_a_feature_without_a_single_value_is_no_term_of_heterrec_s_loss():
    schema = make_schema()
    brand = schema.feature("brand")
    empty = brand.model_copy(update={"transform": brand.transform.model_copy(update={"size": 2})})
    schema = schema.model_copy(update={"features": tuple(empty if f is brand else f for f in schema.features)})
    codes, counts, vectors = make_catalogue()
    codes[:, 1] = np.minimum(codes[:, 1], 1)
    model = make("heterrec", schema, OBJECTIVES["heterrec"])
    model.set_catalogue(codes, counts, vectors)
    prepared = model.objective.prepare(make_batch(schema, 16, 8), np.random.default_rng(0))
    output = model(prepared, training=True)
    before = float(model.compute_loss(x=prepared, y_pred=output))
    assert np.isfinite(before)
    token = to_numpy(output["token"]).copy()
    token[:, :, 1] *= -1
    assert float(model.compute_loss(x=prepared, y_pred={**output, "token": token})) == pytest.approx(before, rel=1e-6)


def test_both_sides_of_heterrec_share_tables_and_start_alike():
    model = make("heterrec", random=False, user_features="none", position_embedding=False, event_types=False)
    paths = [weight.path for weight in model.trainable_weights]
    assert len(paths) == len(set(paths))
    one_event = {key: value.copy() for key, value in make_query(make_schema()).items()}
    for key in ("item", "time", "event_type", "event_device"):
        one_event[key][:, 1:] = 0
    for weight in model.weights:
        if "event_device" in weight.path:
            weight.assign(np.zeros(weight.shape))
    own = np.sum(encode(model, one_event) * to_numpy(model.encode_items(one_event["item"][:, 0])), axis=1)
    assert own.min() > 0.8  # the norms of the blocks subtract the mean of the vector, hence below 1


def test_seeds_give_equal_weights():
    first, second = (make("heterrec", random=False).get_weights() for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
