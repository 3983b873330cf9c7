"""Two towers that meet in a dot product alone, and the retrieval task of TensorFlow Recommenders that trains them.

TensorFlow Recommenders is imported when the first batch is prepared: a trained model is loaded, evaluated and exported
without it, and on JAX too.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import keras
import numpy as np
from keras import ops
from pydantic import Field

from tfrec.errors import UserError
from tfrec.layers import Tensor
from tfrec.layers.causal_mean import CausalMean
from tfrec.layers.gated_recurrence import GatedRecurrence
from tfrec.layers.mlp import MLP
from tfrec.layers.normalization import l2_normalize
from tfrec.layers.transformer_block import TransformerBlock
from tfrec.models.encoders import (
    EventContext,
    ItemEmbedder,
    ItemFeatures,
    SequenceEncoder,
    SumItemEncoder,
    embed_items,
    finish_state,
    item_table,
)
from tfrec.models.shells import RetrievalModel
from tfrec.objectives import build_objective
from tfrec.objectives.item_softmax import ItemSoftmax, check_count, pack_states
from tfrec.objectives.objective import Objective
from tfrec.objectives.packing import Batch, ItemRows, pack_positions
from tfrec.schema import Schema

OBJECTIVE = {"name": "retrieval"}
_NEAR_ZERO = 0.02


@keras.saving.register_keras_serializable(package="tfrec")
class Retrieval(Objective):
    """`tfrs.tasks.Retrieval`: cross entropy of each example's item against the items of other examples.

    An example is a position with its next item. The examples of a batch are dealt out at random into groups of equal
    size; the candidates of a group are the items of its examples, duplicates kept, and the uniform negatives, which all
    groups share: mixed negative sampling. The loss is the mean over all examples.

    Args:
        temperature: float. Divides the scores. Defaults to 0.05.
        num_uniform_negatives: int. Negatives a batch drawn uniformly from the catalogue, beside those in the batch; 0
            = none. Defaults to 1024.
        log_q: bool. Subtract the logarithm of the probability that a candidate is among a group's: the mixture of the
            items' shares of training targets and of the catalogue, weighted by how many candidates come from either
            (`candidate_sampling_probability`). Defaults to True.
        remove_accidental_hits: bool. Candidates that equal the example's item are no negatives. Defaults to True.
        mask_own: bool. Other items of the row's own window are no negatives (`score_mask`). Defaults to True.
        num_hard_negatives: int or None. Only the negatives of an example with so many highest logits, corrected ones,
            are in its softmax; None = all. Defaults to None.
        group_size: int. Examples at most that are each other's negatives: memory is the number of examples times
            `group_size + num_uniform_negatives`. Defaults to 1024.

    Input: user `{"state": (B, L, D)}`; items, a callable on ids `(N,)` that gives `{"vector": (N, D)}`; a prepared
    batch. Output: the loss, and `all_masked`, the share of examples without any negative.

    References: Yi et al., 2019 (logQ); Yang et al., 2020, "Mixed negative sampling for learning two-tower neural
    networks in recommendations".
    Differs from TensorFlow Recommenders: the mean over examples and not their sum, which would tie the learning rate to
    the size of a batch. Probabilities are divided by the greatest of a group, which changes no softmax: the task lifts
    those below 1e-6 to 1e-6, so that in catalogues of over a million items rare ones would be corrected like frequent
    ones. `num_hard_negatives: 0`, documented there as all negatives, leaves none, and is refused. Accidental hits are
    given the logit -3.4e36 there: they stay columns, have no share of any softmax and no gradient, and where an example
    has fewer other negatives than `num_hard_negatives` they fill the places of hard ones. As there, the logit of the
    example's own item is corrected too.
    """

    option_names = (
        "temperature",
        "num_uniform_negatives",
        "log_q",
        "remove_accidental_hits",
        "mask_own",
        "num_hard_negatives",
        "group_size",
    )

    def __init__(
        self,
        *,
        temperature: float = 0.05,
        num_uniform_negatives: int = 1024,
        log_q: bool = True,
        remove_accidental_hits: bool = True,
        mask_own: bool = True,
        num_hard_negatives: int | None = None,
        group_size: int = 1024,
        **kwargs: Any,
    ) -> None:
        check_count("group_size", group_size)
        if num_uniform_negatives:
            check_count("num_uniform_negatives", num_uniform_negatives)
        if num_hard_negatives is not None:
            check_count("num_hard_negatives", num_hard_negatives)
        # The softmax is the task's; this one checks the temperature, keeps the counts and encodes each item once.
        super().__init__(ItemSoftmax("in_batch", num_negatives=group_size, temperature=temperature), 1, **kwargs)
        self.temperature = temperature
        self.num_uniform_negatives = num_uniform_negatives
        self.log_q = log_q
        self.remove_accidental_hits = remove_accidental_hits
        self.mask_own = mask_own
        self.num_hard_negatives = num_hard_negatives
        self.group_size = group_size

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics that `call` returns."""
        return ["all_masked"]

    def build(self, user_shape: Any = None, batch_shape: Any = None) -> None:
        """Has no weights."""
        self.built = True

    def prepare(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Adds groups of examples and their candidates (host side, NumPy).

        With G groups of S examples and C = S + `num_uniform_negatives` candidates, all along the first axis, which
        alone may differ from batch to batch: `group` `(G,)`, `position` `(G * S,)`, and of each candidate, those of
        the examples first, `candidate_item`, `candidate_row` (of `unique_item`) and `candidate_probability`
        `(G * C,)`, and `candidate_own` `(G * C, B)`, whether it stands in a row's window.

        Raises:
            UserError: the backend is not TensorFlow, or TensorFlow Recommenders cannot be imported.
        """
        self._task()
        position, target = self._groups(pack_positions(batch, 1), rng)
        uniform = rng.integers(2, self._softmax.negatives.num_items, self.num_uniform_negatives, dtype=np.int32)
        candidate = np.concatenate([target, np.tile(uniform, (len(target), 1))], axis=1)  # (G, C)
        rows = ItemRows([candidate], self._softmax.negatives.num_items)
        place = rows.rows(candidate)
        return {
            **batch,
            "group": np.arange(len(target), dtype=np.int32),
            "position": position.ravel(),
            "unique_item": rows.items,
            "candidate_item": candidate.ravel(),
            "candidate_row": np.maximum(place, 0).ravel(),
            "candidate_probability": self._probability(candidate, (target > 0).sum(axis=1)).ravel(),
            "candidate_own": rows.within(batch["item"])[:, place.ravel()].T,
        }

    def _groups(self, packed: Batch, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Positions and items of the examples, `(G, S)` each; 0 where a group has one example less."""
        found = rng.permutation(np.flatnonzero(packed["position_mask"][:, 0]))
        count = len(packed["position"])
        groups = -(-count // self.group_size)
        places = np.full(-(-count // groups) * groups, -1)
        places[: len(found)] = found
        dealt = places.reshape(-1, groups).T
        position, target = packed["position"], packed["target_item"][:, 0]
        return np.where(dealt >= 0, position[dealt], 0), np.where(dealt >= 0, target[dealt], 0)

    def _probability(self, candidate: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """How often each candidate is expected among its group's, over the greatest, `(G, C)`; 1 for padding."""
        share = np.exp(self._softmax.negatives.log_probability(candidate.ravel()).astype(np.float64))
        expected = share.reshape(candidate.shape) * examples[:, None]
        expected += self.num_uniform_negatives / (self._softmax.negatives.num_items - 2)
        expected = np.where(candidate > 0, expected, 0)
        greatest = expected.max(axis=1, keepdims=True)
        return np.where(candidate > 0, expected / np.where(greatest > 0, greatest, 1), 1).astype(np.float32)

    def call(
        self, user: dict[str, Tensor], items: Any = None, batch: Any = None, training: bool | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        vector = self._softmax.encode(items, batch)["vector"]  # (M, D)
        position, groups = batch["position"], ops.shape(batch["group"])[0]
        example = {
            "query": ops.cast(pack_states(user["state"], position), "float32"),
            "row": position // ops.shape(user["state"])[1],
        }
        candidate = {key: batch[f"candidate_{key}"] for key in ("item", "row", "probability", "own")}
        parts = tuple(
            {key: ops.reshape(value, (groups, -1, *ops.shape(value)[1:])) for key, value in each.items()}
            for each in (example, candidate)
        )
        summed = ops.map(lambda group: self._group_loss(group[0], group[1], vector), parts)  # (G, 3)
        loss, masked, count = ops.unstack(ops.sum(summed, axis=0), num=3)
        count = ops.maximum(count, 1.0)
        return loss / count, {"all_masked": masked / count}

    def _group_loss(self, example: dict[str, Tensor], candidate: dict[str, Tensor], vector: Tensor) -> Tensor:
        """Sum of the losses, number of examples without a negative, number of examples, `(3,)`."""
        item = candidate["item"]
        size = ops.shape(example["row"])[0]
        target = item[:size]
        weight = ops.cast(target > 0, "float32")
        equal = ops.equal(target[:, None], item[None])  # (S, C)
        positive = ops.equal(ops.arange(size)[:, None], ops.arange(ops.shape(item)[0])[None])
        mask = ops.broadcast_to(item[None] > 0, ops.shape(equal))
        if self.mask_own:
            own = ops.take(ops.transpose(candidate["own"]), example["row"], axis=0)
            mask = ops.logical_and(mask, ops.logical_or(equal, ops.logical_not(own)))
        mask = ops.logical_or(mask, positive)
        loss = self._task()(
            example["query"],
            ops.cast(ops.take(vector, candidate["row"], axis=0), "float32"),
            sample_weight=weight,
            candidate_sampling_probability=candidate["probability"] if self.log_q else None,
            candidate_ids=item,
            compute_metrics=False,
            score_mask=mask,
        )
        negative = ops.logical_and(mask, ops.logical_not(equal if self.remove_accidental_hits else positive))
        masked = ops.cast(ops.logical_not(ops.any(negative, axis=1)), "float32")
        return ops.stack([loss, ops.sum(masked * weight), ops.sum(weight)])

    def _task(self) -> Callable[..., Tensor]:
        return _retrieval_task(self.temperature, self.num_hard_negatives, self.remove_accidental_hits)


@functools.cache
def _retrieval_task(
    temperature: float, num_hard_negatives: int | None, remove_accidental_hits: bool
) -> Callable[..., Tensor]:
    """The task as a function; Keras 3 does not convert its Python, hence `autograph`."""
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            "`objective`: retrieval, TensorFlow Recommenders' task, trains on TensorFlow alone; "
            f"set KERAS_BACKEND=tensorflow, or choose another objective. Received: {keras.backend.backend()}."
        )
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # read when TensorFlow's own Keras is touched first, as here
    try:
        import tensorflow as tf
        import tensorflow_recommenders as tfrs
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"`objective`: retrieval needs TensorFlow Recommenders, which cannot be imported ({reason}); "
            "run `pip install tfrec[retrieval]`, and set TF_USE_LEGACY_KERAS=1 before Python starts."
        ) from None
    task = tfrs.tasks.Retrieval(
        temperature=temperature,
        num_hard_negatives=num_hard_negatives,
        remove_accidental_hits=remove_accidental_hits,
    )
    return tf.function(task, autograph=True)


class UserTower(SequenceEncoder):
    """The encoded history, the latest event and the user's features, mixed by a tower.

    u = h + MLP([h; latest event; user features]), h the history through the blocks.

    Args:
        tower: MLP. Its last layer starts near 0.
        latest_event: bool. Whether the tower sees the latest event by itself.

    The other arguments are those of `SequenceEncoder`.

    Input: a batch of `(B, L)` events. Output: `{"state": (B, L, D)}`, zeros where there is no event.
    """

    def __init__(self, *args: Any, tower: MLP, latest_event: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tower = tower
        self.latest_event = latest_event

    def build(self, batch_shape: Any = None) -> None:
        parts = 1 + int(self.latest_event) + int(self.context.has_user)
        self.tower.build((None, None, parts * self.embedding_dim))
        super().build(batch_shape)

    def call(self, batch: dict[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        context = self.context(batch)
        events = self.embed_events(batch, context, training) * self.embedding_dim**0.5
        history = self.encode(events, batch, context, training)
        parts = [history]
        if self.latest_event:
            parts.append(events)
        if "tower" in context:
            user = context["tower"] * self.embedding_dim**0.5  # (B, 1, D)
            parts.append(ops.broadcast_to(user, ops.shape(history)))
        x = history + self.tower(ops.concatenate(parts, axis=-1), training=training)
        return {"state": finish_state(x, self.valid_mask(batch), self.normalize)}


class ItemTower(SumItemEncoder):
    """v = sum_k e_k + MLP([e_1; ...; e_K]), e_k the embedding of an item's feature k.

    Args:
        tower: MLP. Its last layer starts near 0.

    The other arguments are those of `SumItemEncoder`.

    Input: items `(N,)`. Output: `{"vector": (N, D)}`.
    """

    def __init__(self, *args: Any, tower: MLP, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tower = tower

    def build(self, items_shape: Any = None) -> None:
        self.tower.build((None, self.embedder.num_tokens * self.embedder.embedding_dim))
        super().build(items_shape)

    def call(self, items: Tensor, training: bool | None = None) -> dict[str, Tensor]:
        tokens = embed_items(self.embedder, items, training) * self.embedder.embedding_dim**0.5  # (N, K, D)
        joined = ops.reshape(tokens, (-1, tokens.shape[1] * tokens.shape[2]))
        vector = ops.sum(tokens, axis=1) + self.tower(joined, training=training)
        return {"vector": l2_normalize(vector) if self.normalize else ops.cast(vector, "float32")}


def two_tower(
    schema: Schema,
    *,
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    history_encoder: Literal["mean", "gru", "transformer"] = "mean",
    num_blocks: Annotated[int, Field(ge=1)] = 1,
    num_heads: Annotated[int, Field(ge=1)] = 2,
    intermediate_dim: Annotated[int, Field(ge=1)] | None = None,
    tower_units: Sequence[Annotated[int, Field(ge=1)]] = (128,),
    activation: str = "relu",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    position_embedding: bool | None = None,
    latest_event: bool = True,
    normalize: bool = True,
    item_features: ItemFeatures = "all",
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: Literal["tower", "none"] = "tower",
    event_types: bool = True,
    request_time: bool = False,
) -> RetrievalModel:
    """Two towers (Covington et al., 2016; Yi et al., 2019), trained by TensorFlow Recommenders' retrieval task.

    User tower: the history, pooled or encoded, the latest event and the user's features, through an MLP. Item tower:
    the embeddings of an item's features, through an MLP. Events are embedded like items, by the same tables, and event
    types and event features are added to them.

    Args:
        schema: Schema. Of the dataset.
        objective: layer or None. None = `OBJECTIVE`; another one than `retrieval` trains on JAX too.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D.
        history_encoder: str. `"mean"`: the mean of the events so far; `"gru"`: gated recurrent units; `"transformer"`:
            causal transformer blocks.
        num_blocks: int. Blocks of `gru` and `transformer`.
        num_heads: int. Attention heads of `transformer`; must divide `embedding_dim`.
        intermediate_dim: int or None. Width of `gru`'s state, or inside `transformer`'s feed-forward network; None = 2
            or 4 times `embedding_dim`.
        tower_units: sequence of int. Hidden layers of both towers' MLPs; none = one linear map.
        activation: str. Of the hidden layers and of `transformer`.
        dropout: float. Of the history, in the blocks, and after the user tower's hidden layers.
        position_embedding: bool or None. Whether places have embeddings; None = for `transformer`.
        latest_event: bool. Whether the user tower sees the latest event by itself.
        normalize: bool. Cosine similarity instead of the dot product.
        item_features: `"all"` or names. Features of items.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: str. `"tower"`: the user tower sees them; `"none"`.
        event_types: bool. Whether the type of an event is added to it.
        request_time: bool. Set by the run; this model reads no times.

    Outputs: `{"state": (B, L, D)}`, `{"vector": (N, D)}`.

    Differs from the papers: every event but the first of a window is an example, not one event a user; both towers
    start as plain sums, what an MLP gives being added; both share their tables.
    """
    table = item_table(schema)
    embedder = ItemEmbedder(
        schema, table, embedding_dim, item_features=item_features, item_id_dropout=item_id_dropout, name="embedder"
    )
    context = EventContext(schema, embedding_dim, event_types=event_types, user_features=user_features, name="context")

    def make_tower(rate: float) -> MLP:
        return MLP(
            list(tower_units),
            embedding_dim,
            activation=activation,
            dropout=rate,
            output_stddev=_NEAR_ZERO,
            name="tower",
        )

    def make_block(index: int) -> keras.layers.Layer:
        name = f"block_{index}"
        if history_encoder == "gru":
            return GatedRecurrence(intermediate_dim or 2 * embedding_dim, dropout=dropout, name=name)
        return TransformerBlock(
            num_heads,
            intermediate_dim or 4 * embedding_dim,
            activation=activation,
            dropout=dropout,
            attention_dropout=dropout,
            name=name,
        )

    pooled = history_encoder == "mean"
    user_encoder = UserTower(
        embedder,
        context,
        [CausalMean(name="mean")] if pooled else [make_block(index) for index in range(num_blocks)],
        history_length=history_length,
        embedding_dim=embedding_dim,
        time_bias=False,
        position_embedding=history_encoder == "transformer" if position_embedding is None else position_embedding,
        dropout=dropout,
        normalize=normalize,
        tower=make_tower(dropout),
        latest_event=latest_event,
        name="user_encoder",
    )
    return RetrievalModel(
        user_encoder,
        ItemTower(embedder, normalize=normalize, tower=make_tower(0.0), name="item_encoder"),
        objective or build_objective(OBJECTIVE),
        item_table=table,
        history_length=history_length,
        embedding_dim=embedding_dim,
        request_time=request_time,
        name="two_tower",
    )
