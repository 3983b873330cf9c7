"""HSTU as a ranking model: candidates stand in the history as tokens of their own; what HPGR adds are options of it."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.candidate_positions import CandidatePositions
from tfrec.layers.hstu_target_block import HSTUTargetBlock
from tfrec.layers.label_heads import LabelHeads
from tfrec.layers.pointwise_attention import gather_places
from tfrec.layers.preference_guided_sparse_attention import PreferenceGuidedSparseAttention
from tfrec.layers.relative_bias import RelativeBias
from tfrec.layers.session_enhancement import SessionEnhancement
from tfrec.models.encoders import ItemEmbedder, ItemFeatures, item_table
from tfrec.models.ranking import RankingInputs, places_of, visible_before
from tfrec.models.shells import RankingModel
from tfrec.schema import Schema

PositionKind: TypeAlias = Literal["backward", "shared", "time_aware"]
TIME_BUCKETS = 2048
"""Rows of the table of times: 2,047 squared minutes are eight years."""
View: TypeAlias = dict[str, Tensor]
"""What the blocks are given of a row: `history`, `candidate`, `valid_mask`, `visible`, `weight`, `selected` as they
take them; `key_place`, `query_place`, `key_time`, `query_time` (None where the log has no times) as `RelativeBias`
takes them."""


class TargetAwareScorer(keras.layers.Layer):
    """A history and its candidates, through blocks in which candidates see the history and themselves, to logits.

    Events: sqrt(D) (tokens + context) [+ sessions] + place and time; candidates: sqrt(D) (tokens + user + a learned
    vector in place of an action) + place and time; dropout; blocks; LN; heads.

    Args:
        inputs: RankingInputs. Embeds the row.
        positions: CandidatePositions. Places and times.
        blocks: sequence of HSTUTargetBlock.
        heads: LabelHeads. Of the candidates' states.
        dropout: float. Of the blocks' input.
        bias: RelativeBias or None. Added to every block's products. Defaults to None.
        enhancement: SessionEnhancement or None. Of events. Defaults to None.
        guide: PreferenceGuide or None. Of attention. Defaults to None.

    Input: a ranking batch. Output: `{label: (B, C)}`, with a guide `preference_mask`, a scalar, and `states`
    `(B, L, D)` where events see no later one and have one history for all candidates.
    """

    several_positions = True

    def __init__(
        self,
        inputs: RankingInputs,
        positions: CandidatePositions,
        blocks: Sequence[HSTUTargetBlock],
        heads: LabelHeads,
        *,
        dropout: float,
        bias: RelativeBias | None = None,
        enhancement: SessionEnhancement | None = None,
        guide: "PreferenceGuide | None" = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.inputs = inputs
        self.positions = positions
        self.blocks = list(blocks)
        self.heads = heads
        self.bias = bias
        self.enhancement = enhancement
        self.guide = guide
        self.input_dropout = keras.layers.Dropout(dropout, name="input_dropout")
        self.output_norm = keras.layers.LayerNormalization(epsilon=1e-6, name="output_norm")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the scalars among the outputs."""
        return () if self.guide is None else self.guide.metric_names

    @property
    def has_states(self) -> bool:
        """Whether `states` is among the outputs."""
        causal = self.enhancement is None or self.enhancement.causal
        return causal and not (self.guide is not None and self.guide.whole)

    def build(self, batch_shape: Any = None) -> None:
        shape = (None, None, self.inputs.embedding_dim)
        self.candidate_vector = self.add_weight(
            name="candidate_vector", shape=shape[2:], initializer=keras.initializers.TruncatedNormal(stddev=0.02)
        )
        self.inputs.build()
        for layer in (self.positions, self.output_norm, self.heads, self.enhancement, *self.blocks):
            if layer is not None:
                layer.build(shape)
        for layer in (self.bias, self.guide):
            if layer is not None:
                layer.build()
        self.built = True

    def encode_items(self, items: Tensor) -> Tensor:
        """The vectors `(N, D)` of items `(N,)`."""
        return ops.sum(self.inputs.embedder(items), axis=-2)

    def attention_mask(self, batch: dict[str, Tensor]) -> Tensor | None:
        """PGSA's m of each candidate over the history, `(B, C, L)`; None where nothing guides attention."""
        return None if self.guide is None else self.guide.mask(batch)

    def call(self, batch: dict[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        view = self._embed(batch, training)
        outputs: dict[str, Tensor] = {}
        if self.guide is not None:
            guided = self.guide(view, batch)
            view, outputs["preference_mask"] = {**view, **guided["view"]}, guided["preference_mask"]
        options = {key: view[key] for key in ("valid_mask", "visible", "weight", "selected")} | self._biases(view)
        state = {"history": view["history"], "candidate": view["candidate"]}
        for block in self.blocks:
            state = block(**state, **options, training=training)
        per_row = (-1, ops.shape(batch["candidate"])[1], self.inputs.embedding_dim)
        candidate = self.output_norm(ops.reshape(state["candidate"], per_row))
        if self.has_states:
            outputs["states"] = self.output_norm(state["history"])
        return {**self.heads(candidate, batch.get("candidate_position"), training=training), **outputs}

    def _embed(self, batch: dict[str, Tensor], training: bool | None) -> View:
        parts = self.inputs(batch, training=training)
        valid_mask = batch["item"] != 0
        history, candidate = parts["history"], ops.sum(parts["candidate"], axis=-2) + self.candidate_vector
        if "user" in parts:
            candidate = candidate + ops.sum(parts["user"], axis=1, keepdims=True)
        scale = self.inputs.embedding_dim**0.5
        history, candidate = history * scale, candidate * scale
        if self.enhancement is not None:
            history = self.enhancement(history, batch["session"], training=training)
        place = self.positions(
            history, candidate, batch["candidate_history"], batch.get("time"), batch.get("candidate_time")
        )
        history = self.input_dropout(history + place["history"], training=training)
        return {
            "history": history * ops.cast(valid_mask, history.dtype)[..., None],
            "candidate": self.input_dropout(candidate + place["candidate"], training=training),
            "valid_mask": valid_mask,
            "visible": parts["visible"],
            "weight": None,
            "selected": None,
            "key_place": ops.arange(ops.shape(history)[1], dtype="int32")[None],
            "query_place": batch["candidate_history"],
            "key_time": batch.get("time"),
            "query_time": batch.get("candidate_time"),
        }

    def _biases(self, view: View) -> dict[str, Tensor]:
        if self.bias is None:
            return {}
        place, time = view["key_place"], view["key_time"]
        own_place, own_time = view["query_place"], view["query_time"]
        outputs = {"history_bias": self.bias(place, place, time, time), "own_bias": self.bias.own()}
        if view["selected"] is not None:
            chosen = view["selected"]
            own_place, place = ops.reshape(own_place, (-1, 1)), ops.reshape(chosen, (-1, ops.shape(chosen)[2]))
            if time is not None:
                own_time, time = ops.reshape(own_time, (-1, 1)), gather_places(time[..., None], chosen)[..., 0]
        return {**outputs, "candidate_bias": self.bias(own_place, place, own_time, time)}


class PreferenceGuide(keras.layers.Layer):
    """PGSA for the rows of a model: which embeddings it compares, whose attention it guides, and on which path.

    Args:
        attention: PreferenceGuidedSparseAttention. The mask.
        embedder: ItemEmbedder. What items are compared by, the sum of their tokens, without gradients.
        frozen: bool. Whether the embedder is the guide's own, which is not trained.
        whole: bool. Whether the rows of events are guided too, so that each candidate has a history of its own,
            instead of the candidate's row alone.
        sparse: bool. Whether attention is computed at the places alone that the mask leaves, instead of everywhere.

    Input: view; a ranking batch.
    Output: dict with `view`, what takes the place of entries of the input, and `preference_mask`, the mean of the mask
    over the events before candidates, a scalar.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("preference_mask",)

    def __init__(
        self,
        attention: PreferenceGuidedSparseAttention,
        embedder: ItemEmbedder,
        *,
        frozen: bool,
        whole: bool,
        sparse: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.attention = attention
        self.embedder = embedder
        self.frozen = frozen
        self.whole = whole
        self.sparse = sparse

    def build(self, view_shape: Any = None) -> None:
        if not self.embedder.built:
            self.embedder.build()
        if self.frozen:
            self.embedder.trainable = False
        self.attention.build()
        self.built = True

    def call(self, view: View, batch: dict[str, Tensor]) -> dict[str, Any]:
        compared = self._compared(batch)
        place, mask = self.attention.select(*compared) if self.sparse else (None, self.attention(*compared))
        changes = self._own_histories(view, place, mask) if self.whole else {"visible": mask, "selected": place}
        total = ops.sum(ops.cast(compared[-1], "float32"))
        mean = ops.sum(ops.cast(mask, "float32")) / ops.maximum(total, 1.0)
        return {"view": changes, "preference_mask": mean}

    def mask(self, batch: dict[str, Tensor]) -> Tensor:
        """The mask at all places, `(B, C, L)`, whichever path attention takes."""
        return self.attention(*self._compared(batch))

    def _compared(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates `(B, C, D)`, events `(B, L, D)`, and which of these come before each candidate `(B, C, L)`."""
        candidates, events = (ops.sum(self.embedder(batch[key]), axis=-2) for key in ("candidate", "item"))
        return candidates, events, visible_before(batch)

    def _own_histories(self, view: View, place: Tensor | None, mask: Tensor) -> View:
        """Rows of one candidate each, `(B * C, ...)`, with the whole history or its chosen places."""
        width = ops.shape(mask)[2]
        mask = ops.reshape(mask, (-1, width))
        rows: View = {
            "candidate": ops.reshape(view["candidate"], (-1, 1, view["candidate"].shape[-1])),
            "valid_mask": mask > 0,
            "visible": mask[:, None],
            "weight": mask,
            "query_place": ops.reshape(view["query_place"], (-1, 1)),
        }
        if view["query_time"] is not None:
            rows["query_time"] = ops.reshape(view["query_time"], (-1, 1))
        count = ops.shape(view["candidate"])[1]
        for key in ("history", "key_time"):
            x = view[key]
            if x is not None and place is None:
                rows[key] = ops.repeat(x, count, axis=0)
            elif x is not None:
                rows[key] = gather_places(x, place) if key == "history" else gather_places(x[..., None], place)[..., 0]
        if place is not None:
            rows["key_place"] = ops.reshape(place, (-1, width))
        return rows


def target_aware_model(
    name: str,
    schema: Schema,
    labels: tuple[str, ...],
    objective: keras.layers.Layer,
    *,
    history_length: int,
    embedding_dim: int,
    num_blocks: int,
    num_heads: int,
    key_dim: int | None,
    value_dim: int | None,
    alpha: float | None,
    group_norm: bool,
    hidden_units: tuple[int, ...],
    dropout: float,
    position: PositionKind,
    time_embedding: bool | None,
    relative_bias: bool,
    num_positions: int,
    item_features: ItemFeatures,
    item_id_dropout: float,
    user_features: bool,
    event_types: bool,
    enhancement: SessionEnhancement | None = None,
    make_guide: Callable[[ItemEmbedder], PreferenceGuide] | None = None,
) -> RankingModel:
    """A ranking model of `HSTUTargetBlock`s.

    Args:
        name: str. Of the model.
        schema: Schema. Of the dataset.
        labels: names. That are predicted.
        objective: layer. The loss.
        history_length: int. Events that the model sees at most, and N.
        embedding_dim: int. Width D.
        num_blocks: int. Blocks.
        num_heads: int. Heads of every block.
        key_dim: int or None. Of a head; None = `embedding_dim` / `num_heads`.
        value_dim: int or None. Of a head; None = `embedding_dim` / `num_heads`.
        alpha: float or None. Scale of the products.
        group_norm: bool. Norms of heads.
        hidden_units: ints. Of the head's MLP.
        dropout: float. Of the blocks' input and of what they give.
        position: str. Kind of `CandidatePositions`.
        time_embedding: bool or None. Whether times are embedded; None = where the log has times.
        relative_bias: bool. Whether there is a `RelativeBias`.
        num_positions: int. Places of impressions that have a bias.
        item_features: `"all"` or names. Features whose embeddings are summed to an item's.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: bool. Whether features of users are added to candidates.
        event_types: bool. Whether the type of an event is added to it.
        enhancement: SessionEnhancement or None. Of events. Defaults to None.
        make_guide: callable or None. Gives the guide of attention, told what embeds items. Defaults to None.
    """
    if time_embedding and not schema.has_time:
        raise ValueError("`time_embedding` must be false or left out: the log has no times.")
    table = item_table(schema)
    inputs = RankingInputs(
        schema,
        table,
        embedding_dim,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        event_types=event_types,
        user_features=user_features,
        name="inputs",
    )
    width = max(embedding_dim // num_heads, 1)
    blocks = [
        HSTUTargetBlock(
            num_heads,
            key_dim or width,
            value_dim or width,
            history_length,
            alpha=alpha,
            group_norm=group_norm,
            dropout=dropout,
            name=f"block_{index}",
        )
        for index in range(num_blocks)
    ]
    with_time = schema.has_time if time_embedding is None else time_embedding
    scorer = TargetAwareScorer(
        inputs,
        CandidatePositions(position, history_length + 2, TIME_BUCKETS if with_time else 0, name="positions"),
        blocks,
        LabelHeads(labels, hidden_units, num_positions=places_of(schema, num_positions), name="heads"),
        dropout=dropout,
        bias=RelativeBias(history_length, time_bias=schema.has_time, name="bias") if relative_bias else None,
        enhancement=enhancement,
        guide=None if make_guide is None else make_guide(inputs.embedder),
        name="scorer",
    )
    return RankingModel(
        scorer,
        objective,
        labels=labels,
        causal=position != "backward" and (enhancement is None or enhancement.causal),
        item_table=table,
        history_length=history_length,
        embedding_dim=embedding_dim,
        name=name,
    )


__all__ = ["TIME_BUCKETS", "PositionKind", "PreferenceGuide", "TargetAwareScorer", "target_aware_model"]
