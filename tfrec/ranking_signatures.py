"""The exported module of a ranking model: raw histories and candidates in, probabilities and scores out.

Like `tfrec.signatures` it holds variables and tables, and not the Keras model.
"""

from collections.abc import Mapping
from pathlib import Path

import keras
import tensorflow as tf

from tfrec.coders import VocabularyCoder
from tfrec.graph import HistoryEncoder
from tfrec.models.shells import RankingModel
from tfrec.schema import Schema
from tfrec.signatures import NOTHING_LEFT, Signature, Tensor, concrete, held
from tfrec.transforms import PADDING

CANDIDATES = "candidate_ids"
SCORE = "score"


class RankingSignatures(tf.Module):
    """Everything that the signature `rank` needs, as variables and tables.

    Every candidate of a request is seen as if it stood first in its list, at the time of the request; events after
    that time count for nothing.

    Args:
        schema: of the dataset.
        directory: of the dataset.
        model: with its weights and its catalogue.
        score_weights: of the labels' probabilities, whose sum is the score.
    """

    def __init__(
        self, schema: Schema, directory: Path, model: RankingModel, *, score_weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.schema = schema
        self.score_weights = dict(score_weights)
        self.weights_ = held(model.scorer, model.item_table)
        self.item_coder = VocabularyCoder(schema.item_vocabulary, directory)
        self.history = HistoryEncoder(
            schema,
            directory,
            self.item_coder,
            length=model.history_length,
            request_time=schema.has_time,
            until_request=schema.has_time,
            item_codes=keras.ops.convert_to_numpy(model.item_table.codes_table),
        )

    def signature(self) -> dict[str, tf.TensorSpec]:
        """The raw inputs of `rank` by name."""
        return {**self.history.signature(), CANDIDATES: tf.TensorSpec([None, None], tf.string, CANDIDATES)}

    def trace(self, model: RankingModel) -> dict[str, Signature]:
        """The concrete signatures by name, for `tf.saved_model.save`.

        Args:
            model: the one that this was made of.
        """
        rank = concrete(lambda **inputs: self.rank(model, inputs), self.signature())
        return {"serving_default": rank, "rank": rank}

    def rank(self, model: RankingModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The probability `(B, C)` of each label by its name, and `score` `(B, C)`.

        Args:
            model: the one that this was made of.
            inputs: as `signature` names them. An empty candidate has the probability 0 and the lowest score.
        """
        batch, _ = self.history({name: values for name, values in inputs.items() if name != CANDIDATES})
        rule = f"{CANDIDATES}: must have as many rows as history_item_ids."
        same_rows = tf.debugging.assert_equal(tf.shape(inputs[CANDIDATES])[0], tf.shape(batch["item"])[0], rule)
        with tf.control_dependencies([same_rows]):
            ids = tf.identity(inputs[CANDIDATES])
        real = ids != ""

        def of_all(values: Tensor) -> Tensor:
            return tf.where(real, values[:, None], 0)

        batch["candidate"] = tf.where(real, self.item_coder(ids), PADDING)
        batch["candidate_history"] = of_all(tf.reduce_sum(tf.cast(batch["item"] != PADDING, tf.int32), axis=1))
        if self.schema.has_time:
            batch["candidate_time"] = of_all(batch.pop("request_time"))
        logits = model(batch, training=False)
        answer = {label: tf.where(real, tf.sigmoid(logit), 0.0) for label, logit in logits.items()}
        score = tf.add_n([weight * answer[label] for label, weight in self.score_weights.items()])
        answer[SCORE] = tf.where(real, score, NOTHING_LEFT)
        return answer
