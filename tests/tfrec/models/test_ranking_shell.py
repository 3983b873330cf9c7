"""The shell of ranking models, by the tiniest of them."""

import keras
import numpy as np
import pytest

from tests.checks import check_ranking_model, randomise, seed_weights, to_numpy
from tests.tfrec.models.made import NUM_ITEMS, SIZES, make_catalogue, make_ranking_batch, make_schema
from tests.tfrec.models.tiny import NAME
from tfrec.errors import UsageError
from tfrec.models import build

pytestmark = pytest.mark.jax

LABELS = ("click", "cart")


def make(objective=None, *, labels="all", **options):
    seed_weights(0)
    model = build(make_schema(labels=LABELS), {"name": NAME, **options}, objective, labels=labels)
    model.set_catalogue(*make_catalogue())
    return model


def test_the_tiniest_model_passes_the_battery(tmp_path):
    schema = make_schema(labels=LABELS)
    batches = [make_ranking_batch(schema, 40, 8, 4), make_ranking_batch(schema, 40, 8, 4, 1, by_user=True)]
    tables = NUM_ITEMS + SIZES["brand"] + SIZES["tags"]
    image = 2 * 11 * 4  # two groups of nine codes, padding and unknown, half as wide
    check_ranking_model(make(), batches, parameters=tables * 8 + image + 2 * (10 + 1), tmp_path=tmp_path, rebuild=make)


def test_position_counts_in_training_and_is_the_first_outside_it():
    model, batch = make(), make_ranking_batch(make_schema(labels=LABELS), 8, 8, 4)
    randomise(model)
    first = {**batch, "candidate_position": np.ones_like(batch["candidate"])}
    outside, trained = to_numpy(model(batch)["click"]), to_numpy(model(batch, training=True)["click"])
    np.testing.assert_array_equal(outside, to_numpy(model(first)["click"]))
    at_first = batch["candidate_position"] == 1
    np.testing.assert_allclose(trained[at_first], outside[at_first], atol=1e-6)
    later = batch["candidate_position"] > 1
    assert (np.abs(trained - outside)[later] > 1e-3).all()
    places = np.stack([batch["candidate_position"], batch["candidate"] > 0], axis=-1).astype("int32")
    compared = to_numpy(model({**batch, "compared_position": places})["click"])
    np.testing.assert_allclose(compared[..., 0], trained, atol=1e-6)
    np.testing.assert_allclose(compared[..., 1], to_numpy(model(first)["click"]), atol=1e-6)


def test_metrics_of_objective_and_scorer_are_means_over_batches():
    model, batch = make(), make_ranking_batch(make_schema(labels=LABELS), 8, 8, 4)
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    values = model.train_on_batch(batch, return_dict=True)
    assert set(values) == {"loss", "loss_click", "loss_cart", "with_history"}
    assert values["loss"] == pytest.approx(values["loss_click"] + values["loss_cart"], rel=1e-6)
    assert values["with_history"] == pytest.approx((batch["candidate_history"] > 0).mean())


def test_labels_are_those_of_the_config():
    assert make().labels == LABELS
    assert make(labels=["cart"]).labels == ("cart",)
    for labels, message in ((["carts"], "`ranking.labels`: no impression has a label 'carts'; did you mean `cart`?"),):
        with pytest.raises(UsageError) as error:
            make(labels=labels)
        assert message in str(error.value)
    with pytest.raises(UsageError) as error:
        build(make_schema(), {"name": NAME})
    assert "learns from impressions with labels; the dataset has none" in str(error.value)


def test_objective_weights_name_labels():
    assert make({"name": "binary_crossentropy", "label_weights": {"cart": 2}}).objective.label_weights == {"cart": 2}
    with pytest.raises(UsageError) as error:
        make({"name": "binary_crossentropy", "label_weights": {"buy": 2}})
    assert "`label_weights` must name labels of ['click', 'cart']. Received: 'buy'." in str(error.value)
