import numpy as np
import pytest

from tests.tfrec.models.made import make_catalogue, make_query, make_schema
from tfrec.errors import UsageError
from tfrec.models import MODELS, build, is_ranking, resolve
from tfrec.models.sasrec import sasrec

pytestmark = pytest.mark.jax


def of_users(schema, *, objective=None, request_time=False, width: int = 4):
    """A model of one's own, named by module:function."""
    return sasrec(schema, objective=objective, request_time=request_time, embedding_dim=width)


def test_models_are_known_by_name():
    assert set(MODELS) >= {"heterrec", "hstu", "popularity", "sasrec"}
    for name in MODELS:
        ranks = is_ranking(resolve(name))
        model = build(make_schema(labels=("click",)), {"name": name, "history_length": 9}, request_time=not ranks)
        assert model.history_length == 9
        assert model.name == name
        assert model.labels == ("click",) if ranks else model.request_time is True


def test_own_model_is_named_by_module_and_function():
    model = build(
        make_schema(), {"name": f"{__name__}:of_users", "width": 6}, {"name": "full_softmax", "temperature": 0.1}
    )
    assert model.embedding_dim == 6
    assert model.objective.temperature == 0.1


def test_an_objective_without_name_changes_the_models_own():
    model = build(make_schema(), {"name": "sasrec"}, {"num_negatives": 7})
    assert type(model.objective).__name__ == "SampledSoftmax"
    assert model.objective.num_negatives == 7


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "heterec"}, "`model.name`: unknown model 'heterec'; did you mean `heterrec`?"),
        ({}, "`model.name`: must be given"),
        ({"name": "tfrec.models.nothing:at_all"}, "`model.name`: tfrec.models.nothing:at_all cannot be imported"),
        ({"name": "sasrec", "num_block": 2}, "`model.num_block`: unknown option of sasrec; did you mean `num_blocks`?"),
        ({"name": "sasrec", "schema": 2}, "`model.schema`: unknown option of sasrec"),
        ({"name": "sasrec", "nam": 2}, "`model.nam`: unknown option of sasrec; did you mean `name`?"),
        ({"name": "sasrec", "num_blocks": "two"}, "`model.num_blocks`: Input should be a valid integer"),
        ({"name": "sasrec", "dropout": 1.5}, "`model.dropout`: Input should be less than 1. Received: 1.5."),
        ({"name": "heterrec", "ablation": "without"}, "`model.ablation`: Input should be 'without_htfl', "),
        ({"name": "heterrec", "token_mask": "none"}, "`model.token_mask`: Input should be 'causal' or 'full'"),
        ({"name": "sasrec", "num_heads": 7}, "`model`: sasrec: `num_heads` must divide the input's width 64"),
        ({"name": "heterrec", "embedding_dim": 7}, "`model`: heterrec: `embedding_dim` must be a multiple of"),
        ({"name": "sasrec", "item_features": ["colour"]}, "`item_features` must name features of"),
    ],
)
def test_wrong_use_is_one_line(model, message):
    with pytest.raises(UsageError) as error:
        build(make_schema(), model)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_an_unfilled_item_table_knows_nothing_and_an_id_outside_is_unknown():
    model = build(make_schema(), {"name": "sasrec", "history_length": 16})
    model.set_catalogue(*make_catalogue())
    query = make_query(make_schema())
    unknown = {**query, "item": np.where(query["item"] > 0, 1, 0)}
    outside = {**query, "item": np.where(query["item"] > 0, 10_000, 0)}
    np.testing.assert_array_equal(np.asarray(model.encode_users(outside)), np.asarray(model.encode_users(unknown)))
