"""The exported module of two models in one request: the first retrieves, the second ranks what it found.

Importing this module imports TensorFlow.
"""

from collections.abc import Mapping

import tensorflow as tf

from tfrec.models.shells import RankingModel, RetrievalModel
from tfrec.ranking_signatures import CANDIDATES, SCORE, RankingSignatures
from tfrec.signatures import RetrievalSignatures, Signature, Tensor, concrete


class TwoStageSignatures(tf.Module):
    """Everything that the signatures of two stages need.

    Args:
        retrieval: of the model that retrieves; its `k` items of an answer are ranked.
        ranking: of the model that ranks them.
        k: items of an answer.
    """

    def __init__(self, retrieval: RetrievalSignatures, ranking: RankingSignatures, *, k: int) -> None:
        super().__init__()
        self.retrieval = retrieval
        self.ranking = ranking
        self.k = min(k, retrieval.k)

    def trace(self, retriever: RetrievalModel, ranker: RankingModel) -> dict[str, Signature]:
        """The concrete signatures by name, for `tf.saved_model.save`.

        Args:
            retriever: the model that `retrieval` was made of.
            ranker: the model that `ranking` was made of.
        """
        history = {**self.retrieval.history.signature(), **self.ranking.history.signature()}

        def answer(*, filtered: bool) -> Signature:
            def recommend(**inputs: Tensor) -> dict[str, Tensor]:
                wanted = self._until_request(inputs)
                found = self.retrieval.recommend(retriever, wanted, filtered=filtered)["item_ids"]
                asked = {name: inputs[name] for name in self.ranking.history.signature()}
                return self._best(ranker, {**asked, CANDIDATES: found})

            filters = self.retrieval.filter.signature() if filtered else {}
            return concrete(recommend, {**history, **filters})

        plain = answer(filtered=False)
        return {
            "serving_default": plain,
            "recommend": plain,
            "recommend_filtered": answer(filtered=True),
            "rank": self.ranking.trace(ranker)["rank"],
        }

    def _best(self, ranker: RankingModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores, places = tf.math.top_k(self.ranking.rank(ranker, inputs)[SCORE], self.k)
        return {"item_ids": tf.gather(inputs[CANDIDATES], places, batch_dims=1), "scores": scores}

    def _until_request(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs of the first stage, without what came after the request, which the second one leaves out too."""
        wanted = dict(inputs)
        if self.ranking.schema.has_time:
            before = inputs["history_times"] <= inputs["request_time"][:, None]
            wanted["history_item_ids"] = tf.where(before, inputs["history_item_ids"], "")
            if "request_time" not in self.retrieval.history.signature():
                del wanted["request_time"]
        return wanted
