import numpy as np
import pytest

from tests.checks import randomise, run, to_numpy
from tests.tfrec.models.made import make_catalogue, make_ranking_batch, make_schema
from tfrec.models.encoders import item_table
from tfrec.models.ranking import RankingInputs, average_before, last_state

pytestmark = pytest.mark.jax


def make_inputs(schema, **options):
    table = item_table(schema)
    table.build()
    table.fill(*make_catalogue())
    inputs = RankingInputs(schema, table, 8, name="inputs", **options)
    inputs.build()
    randomise(inputs)
    return inputs


def test_a_row_is_its_events_candidates_and_user():
    schema = make_schema(labels=("click", "buy"))
    inputs, batch = make_inputs(schema), make_ranking_batch(schema, 6, 8, 5, by_user=True)
    output = run(inputs, {"batch": batch})
    shapes = {"history": (6, 8, 8), "candidate": (6, 5, 4, 8), "user": (6, 1, 8), "visible": (6, 5, 8)}
    assert {key: value.shape for key, value in output.items()} == shapes
    assert (inputs.num_item_fields, inputs.num_user_fields) == (4, 1)

    tokens = to_numpy(inputs.embedder(batch["item"]))
    tables = {weight.path.split("/")[-2]: np.asarray(weight) for weight in inputs.weights}
    for row, place in np.ndindex(6, 8):
        expected = tokens[row, place].sum(axis=0)
        expected = expected + tables["event_type_table"][batch["event_type"][row, place]]
        expected = expected + tables["event_device_table"][batch["event_device"][row, place]]
        real = batch["item"][row, place] > 0
        np.testing.assert_allclose(output["history"][row, place], expected * real, atol=1e-5)
    np.testing.assert_allclose(output["candidate"], to_numpy(inputs.embedder(batch["candidate"])), atol=1e-6)
    np.testing.assert_allclose(output["user"][:, 0], tables["user_segment_table"][batch["user_segment"]], atol=1e-6)
    assert not output["candidate"][batch["candidate"] == 0].any()


def test_options_leave_inputs_out():
    schema = make_schema(labels=("click", "buy"))
    inputs = make_inputs(schema, event_types=False, user_features=False, item_features=("item_id",))
    output = run(inputs, {"batch": make_ranking_batch(schema, 6, 8, 5, by_user=True)})
    assert "user" not in output
    assert output["candidate"].shape == (6, 5, 1, 8)
    assert not any("event_type" in weight.path for weight in inputs.weights)


def test_what_a_candidate_knows_of_its_history():
    schema = make_schema(labels=("click", "buy"))
    inputs, batch = make_inputs(schema), make_ranking_batch(schema, 6, 8, 5, by_user=True)
    output = run(inputs, {"batch": batch})
    x = output["history"]
    means, states = to_numpy(average_before(x, output["visible"])), to_numpy(last_state(x, batch))
    assert (batch["candidate_history"] == 0).any()
    for row, place in np.ndindex(6, 5):
        count = batch["candidate_history"][row, place]
        np.testing.assert_array_equal(output["visible"][row, place], np.arange(8) < count)
        mean = x[row, :count].mean(axis=0) if count else np.zeros(8)
        np.testing.assert_allclose(means[row, place], mean, atol=1e-6)
        np.testing.assert_array_equal(states[row, place], x[row, count - 1] if count else np.zeros(8))
