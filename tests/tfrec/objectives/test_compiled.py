"""Objectives inside a TensorFlow graph whose every dimension may vary, as training traces them once."""

import numpy as np
import pytest

from tests.tfrec.objectives.reference import counts, make_arrays, make_batch
from tests.tfrec.objectives.test_multi_step import TokenTable, token_arrays
from tfrec.objectives import build_objective

SECTIONS = [
    {"name": "sampled_softmax", "num_negatives": 4},
    {"name": "sampled_softmax", "num_negatives": 4, "negatives": "shared"},
    {"name": "in_batch_softmax", "num_negatives": 4},
    {"name": "in_batch_softmax", "negatives": "same_step"},
    {"name": "listwise_multi_step", "negatives": "same_step"},
    {"name": "listwise_multi_step", "negatives": "full", "null_logit": True},
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: "-".join(map(str, section.values())))
def test_one_trace_serves_every_shape(section):
    import tensorflow as tf

    objective = build_objective(section)
    objective.set_counts(counts())
    objective.build({"state": (None, None, 4), "token": (None, None, 2, 3)})
    _, vectors = make_arrays()
    _, tokens, table = token_arrays(3)
    items = TokenTable(vectors, tokens, table)

    def loss(state, token, batch):
        return objective({"state": state, "token": token}, items=items, batch=batch)[0]

    cases = []
    for rows, length in ((3, 5), (6, 9)):
        batch = objective.prepare(make_batch(2, rows, length), np.random.default_rng(0))
        cases.append((make_arrays(2, rows, length)[0], token_arrays(rows, length)[0], batch))
    example = cases[0][2]
    signature = (
        tf.TensorSpec([None, None, 4]),
        tf.TensorSpec([None, None, 2, 3]),
        {name: tf.TensorSpec([None] * array.ndim, array.dtype) for name, array in example.items()},
    )
    traced = tf.function(loss, input_signature=signature)
    for case in cases:
        assert float(traced(*case)) == pytest.approx(float(loss(*case)), rel=1e-5)
    assert traced.experimental_get_tracing_count() == 1
