"""The smallest ranking model, for tests of everything around ranking models."""

import keras
from keras import ops

from tfrec.models.encoders import ItemEmbedder, item_table
from tfrec.models.shells import RankingModel
from tfrec.objectives import build_objective

NAME = f"{__name__}:tiny_ranking"
OBJECTIVE = {"name": "binary_crossentropy"}


class TinyScorer(keras.layers.Layer):
    """A dense layer over the candidate times the last event before it, its place on the list, and how much came before.

    Its metric is the share of candidates with events before them.
    """

    metric_names = ("with_history",)

    def __init__(self, embedder, labels, **kwargs):
        super().__init__(**kwargs)
        self.embedder = embedder
        self.labels = labels

    def build(self, batch_shape=None):
        self.embedder.build()
        self.heads = {label: keras.layers.Dense(1, name=f"{label}_head") for label in self.labels}
        for head in self.heads.values():
            head.build((None, None, self.embedder.embedding_dim + 2))
        self.built = True

    def encode_items(self, items, training=None):
        return ops.sum(self.embedder(items, training=training), axis=-2)

    def call(self, batch, training=None):
        before = batch["candidate_history"]
        if batch["item"].shape[1] == 0:
            raise ValueError("A batch has at least one place for events.")
        last = ops.take_along_axis(batch["item"], ops.maximum(before - 1, 0), axis=1)  # (B, C)
        last = ops.where(before > 0, last, 0)
        product = self.encode_items(batch["candidate"], training) * self.encode_items(last, training)
        numbers = ops.cast(ops.stack([batch["candidate_position"], before], axis=-1), product.dtype)
        x = ops.concatenate([product, ops.log1p(numbers)], axis=-1)
        logits = {label: head(x)[..., 0] for label, head in self.heads.items()}
        return {**logits, "with_history": ops.mean(ops.cast(before > 0, "float32"))}


def tiny_ranking(
    schema,
    *,
    labels,
    objective=None,
    history_length: int = 16,
    embedding_dim: int = 8,
    causal: bool = True,
):
    """The builder."""
    table = item_table(schema)
    return RankingModel(
        TinyScorer(ItemEmbedder(schema, table, embedding_dim, name="embedder"), labels, name="scorer"),
        objective or build_objective(OBJECTIVE),
        labels=labels,
        causal=causal,
        item_table=table,
        history_length=history_length,
        embedding_dim=embedding_dim,
        name="tiny_ranking",
    )
