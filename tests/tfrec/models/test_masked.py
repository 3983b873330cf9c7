"""Models that guess hidden events: what is hidden is seen nowhere, and serving asks as training does."""

import numpy as np
import pytest

from tests.checks import to_numpy
from tests.tfrec.models.made import make_batch, make_catalogue, make_query, make_schema
from tests.tfrec.models.test_models import MASKED, encode, make
from tfrec.errors import UsageError
from tfrec.models import build

pytestmark = pytest.mark.jax


def hidden(batch, *places):
    masked = np.zeros(batch["item"].shape, bool)
    for row, place in places:
        masked[row, place] = True
    return {**batch, "masked": masked}


def states(model, batch):
    return to_numpy(model(batch)["state"])


@pytest.mark.parametrize("name", MASKED)
def test_a_hidden_event_is_seen_nowhere(name):
    model, batch = make(name), make_batch(make_schema(), 4, 8)
    batch["item"][0] = np.arange(2, 11)
    masked = hidden(batch, (0, 3))
    before = states(model, masked)
    other = {key: value.copy() for key, value in masked.items()}
    for key in ("item", "event_type", "event_device"):
        other[key][0, 3] = 3 if other[key][0, 3] != 3 else 2
    np.testing.assert_array_equal(states(model, other), before)
    assert np.abs(states(model, hidden(batch)) - before)[0].max() > 1e-3  # nothing masked
    other["item"][0, 4] = 20  # one that is not hidden is seen before it and after it
    difference = np.abs(states(model, other) - before)[0].max(axis=-1)
    assert (difference > 1e-5).all()


@pytest.mark.parametrize("name", MASKED)
def test_a_query_is_a_history_whose_next_event_is_hidden(name):
    schema = make_schema()
    model, batch = make(name, schema), make_batch(schema, 6, 8)
    lengths = (batch["item"] > 0).sum(axis=1)
    last = lengths - 1
    rows = np.arange(6)
    batch["session"][rows, last] = batch["session"][rows, last - 1]  # the session goes on
    trained = states(model, hidden(batch, *zip(rows, last, strict=True)))[rows, last]
    query = {key: value if key.startswith("user_") else value.copy() for key, value in batch.items()}
    for key in ("item", "time", "event_type", "event_device", "session"):
        query[key][rows, last] = 0
    query = {key: value if key.startswith("user_") else value[:, :-1] for key, value in query.items()}
    np.testing.assert_allclose(encode(model, query), trained, atol=1e-6)


def test_sessions_matter_to_hpgr_and_not_to_bert4rec():
    query = make_query(make_schema())
    one = {**query, "session": np.minimum(query["session"], 1)}
    for name, matters in (("hpgr_pretrain", True), ("bert4rec", False)):
        model = make(name)
        assert (np.abs(encode(model, one) - encode(model, query)).max() > 1e-4) == matters


def test_hpgr_needs_sessions():
    schema = make_schema().model_copy(update={"has_sessions": False})
    with pytest.raises(UsageError, match="`session_enhancement` must be false: the log has no sessions"):
        build(schema, {"name": "hpgr_pretrain"})
    model = build(schema, {"name": "hpgr_pretrain", "session_enhancement": False, "embedding_dim": 8})
    model.set_catalogue(*make_catalogue())
    query = {key: value for key, value in make_query(schema).items() if key != "session"}
    assert np.isfinite(encode(model, query)).all()
