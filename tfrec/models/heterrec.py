"""HeterRec: histories of heterogeneous tokens, a hierarchical causal transformer, listwise multi-step prediction."""

from typing import Annotated, Any, Literal

import keras
from keras import ops
from pydantic import Field

from tfrec.layers import Tensor
from tfrec.layers.heterogeneous_token_flatten import HeterogeneousTokenFlatten, token_mask
from tfrec.layers.hierarchical_causal_transformer import HierarchicalCausalTransformer
from tfrec.layers.hierarchical_item_tower import HierarchicalItemTower
from tfrec.layers.normalization import l2_normalize
from tfrec.models.encoders import (
    EventContext,
    ItemEmbedder,
    ItemFeatures,
    UserFeatures,
    chosen_features,
    embed_items,
    finish_state,
    has_time_bias,
    item_table,
    time_gaps,
)
from tfrec.models.shells import RetrievalModel
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "listwise_multi_step"}

Ablation = Literal["without_htfl", "without_mfk", "without_hct"]


class HeterRecUserEncoder(keras.layers.Layer):
    """HTFL, HCT, and the linear map that predicts the next item (MLP_1 of the objective's steps).

    Args:
        embedder: ItemEmbedder. Shared with the item encoder.
        context: EventContext. Event and user features.
        flatten: HeterogeneousTokenFlatten.
        transformer: HierarchicalCausalTransformer.
        embedding_dim: int. D.
        dropout: float. Of the flattened tokens.
        normalize: bool. Whether states have length 1.
        residual: bool. Whether the linear map starts as the identity.

    Input: a batch of `(B, L)` events.
    Output: `{"state": (B, L, D), "token": (B, L, K, D)}`, zeros where there is no event.
    """

    def __init__(
        self,
        embedder: ItemEmbedder,
        context: EventContext,
        flatten: HeterogeneousTokenFlatten,
        transformer: HierarchicalCausalTransformer,
        *,
        embedding_dim: int,
        dropout: float,
        normalize: bool,
        residual: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.embedder = embedder
        self.context = context
        self.flatten = flatten
        self.transformer = transformer
        self.embedding_dim = embedding_dim
        self.normalize = normalize
        self.input_dropout = keras.layers.Dropout(dropout, name="input_dropout")
        initializer = "identity" if residual else "glorot_uniform"
        self.next_item = keras.layers.Dense(
            embedding_dim, use_bias=False, kernel_initializer=initializer, name="next_item"
        )

    def build(self, batch_shape: Any = None) -> None:
        if not self.embedder.built:
            self.embedder.build()
        self.context.build()
        self.flatten.build((None, None, self.embedder.num_tokens, self.embedding_dim))
        self.transformer.build((None, None, self.embedding_dim))
        self.next_item.build((None, self.embedding_dim))
        self.built = True

    def call(self, batch: dict[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        # HTFL
        valid_mask = batch["item"] != 0
        context = self.context(batch)
        tokens = self.embedder(batch["item"], training=training)
        tokens = self.flatten(tokens, context.get("event"), context.get("prefix"))  # (B, T, D)
        mask = token_mask(valid_mask, self.embedder.num_tokens, has_prefix="prefix" in context)
        tokens = self.input_dropout(tokens, training=training) * ops.cast(mask, tokens.dtype)[..., None]

        # HCT
        first = self.context.prefix_length
        time_gap = time_gaps(batch, first) if self.transformer.time_bias else None
        encoded = self.transformer(tokens, mask, time_gap, training=training)
        state = self.next_item(encoded["state"][:, first:])
        token = encoded["token"][:, first:]
        return {"state": finish_state(state, valid_mask, self.normalize), "token": ops.cast(token, "float32")}


class HeterRecItemEncoder(keras.layers.Layer):
    """The hierarchical item tower over an item's tokens, and what the token level of the objective asks of an item.

    Args:
        embedder: ItemEmbedder. Shared with the user encoder.
        tower: HierarchicalItemTower.
        normalize: bool. Whether vectors have length 1.

    Input: items `(N,)`. Output: `{"vector": (N, D), "token": (N, K, D)}`. The vector is of what `item_id_dropout`
    left; the token level compares tokens with the codes they stand for, so that none of its tokens is hidden.
    """

    def __init__(self, embedder: ItemEmbedder, tower: HierarchicalItemTower, *, normalize: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embedder = embedder
        self.tower = tower
        self.normalize = normalize

    def build(self, items_shape: Any = None) -> None:
        if not self.embedder.built:
            self.embedder.build()
        self.tower.build((None, self.embedder.num_tokens, self.embedder.embedding_dim))
        self.built = True

    def call(self, items: Tensor, training: bool | None = None) -> dict[str, Tensor]:
        encoded = self.tower(embed_items(self.embedder, items, training))
        token = encoded["token"]
        if training and self.embedder.id_dropout.rate:
            token = self.tower.encode_tokens(self.embedder(items, training=False))
        vector = l2_normalize(encoded["vector"]) if self.normalize else ops.cast(encoded["vector"], "float32")
        return {"vector": vector, "token": ops.cast(token, "float32")}

    def token_codes(self, items: Tensor) -> list[Tensor]:
        """The codes that each of the K tokens is made of, each `(N, c)`."""
        return self.embedder.token_codes(items)

    def token_tables(self) -> list[Tensor | None]:
        """The encoded tokens of all values of a type, `(values, D)`; None for types without such a table."""
        tables = self.embedder.token_tables()
        return [None if table is None else self.tower.encode_token(table, k) for k, table in enumerate(tables)]


def heterrec(
    schema: Schema,
    *,
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_token_blocks: Annotated[int, Field(ge=0)] = 2,
    num_item_blocks: Annotated[int, Field(ge=0)] = 2,
    num_heads: Annotated[int, Field(ge=1)] = 2,
    intermediate_dim: Annotated[int, Field(ge=1)] | None = None,
    activation: str = "relu",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    time_bias: bool | None = None,
    position_embedding: bool = True,
    token_mask: Literal["causal", "full"] = "causal",
    norm_first: bool = False,
    residual: bool = True,
    normalize: bool = True,
    item_features: ItemFeatures = "all",
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: UserFeatures = "prefix",
    event_types: bool = True,
    ablation: Ablation | None = None,
    request_time: bool = False,
) -> RetrievalModel:
    """HeterRec (Deng et al., 2025, arXiv:2503.01469): one token a feature, attention over tokens, then over items.

    Of its ablations (table 2) the others are choices of the objective: without LMP is `multi_step`, without t-LMP
    `listwise_multi_step` with `token_weight` 0.

    Args:
        schema: Schema. Of the dataset.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width of tokens and items; a multiple of the groups of each quantised feature.
        num_token_blocks: int. N1.
        num_item_blocks: int. N2.
        num_heads: int. Attention heads; must divide `embedding_dim`.
        intermediate_dim: int or None. Width inside feed-forward networks and MLPs; None = 2 * `embedding_dim`.
        activation: str. Of feed-forward networks and MLPs.
        dropout: float. Of inputs and sublayer outputs.
        time_bias: bool or None. Whether attention is biased by time gaps; None = where the log has times.
        position_embedding: bool. Whether places have embeddings, added to all tokens of the item there.
        token_mask: str. `"causal"`: a token sees the earlier tokens of its own item; `"full"`: all of its item.
        norm_first: bool. The order of norms of SASRec instead of post-LN.
        residual: bool. Whether MLPs over tokens are added to the tokens' sum.
        normalize: bool. Cosine similarity instead of the dot product.
        item_features: `"all"` or names. Features that become tokens.
        item_id_dropout: float. Probability of replacing an id by unknown in training, so that new items, which have no
            id, are understood.
        user_features: str. `"prefix"`: one token that every position sees; `"add"`: added to events; `"none"`.
        event_types: bool. Whether the type of an event is added to its tokens.
        ablation: str or None. `"without_htfl"`: features concatenated through a dense layer to one token an item,
            without their sum whatever `residual` is (the paper's concat-based method); its token level goes on, over
            that one token;
            `"without_mfk"`: quantised features as their vectors, projected, which needs `keep_vectors`;
            `"without_hct"`: N1 + N2 blocks over the flattened tokens, an item's state being the mean of its tokens'.
        request_time: bool. Set by the run; which times a position sees.

    Outputs: `{"state": (B, L, D), "token": (B, L, K, D)}`, `{"vector": (N, D), "token": (N, K, D)}`.

    Differs from the paper: residual sums around the MLPs of both sides (`residual`), so that both start as the sum of
    the same token embeddings; position embeddings, event types, event and user features, of which it says nothing;
    a rotation before the quantiser; cosine similarity; kernels of the blocks' outputs start small; tokens are
    multiplied by sqrt(D); steps after the first read the state, MLP_i(norm(MLP_1(u))), not MLP_i(u).
    """
    vector_features = _vector_features(schema, item_features) if ablation == "without_mfk" else ()
    table = item_table(schema, vector_features)
    embedder = ItemEmbedder(
        schema,
        table,
        embedding_dim,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        projected_vectors=vector_features,
        concatenated=ablation == "without_htfl",
        name="embedder",
    )
    context = EventContext(schema, embedding_dim, event_types=event_types, user_features=user_features, name="context")
    hierarchical = ablation != "without_hct"
    transformer = HierarchicalCausalTransformer(
        embedder.num_tokens,
        num_heads,
        intermediate_dim or 2 * embedding_dim,
        num_token_blocks=num_token_blocks if hierarchical else num_token_blocks + num_item_blocks,
        num_item_blocks=num_item_blocks if hierarchical else 0,
        fuse="mlp" if hierarchical else "mean",
        residual=residual,
        token_mask=token_mask,
        time_bias=has_time_bias(schema, time_bias),
        norm_first=norm_first,
        activation=activation,
        dropout=dropout,
        name="transformer",
    )
    user_encoder = HeterRecUserEncoder(
        embedder,
        context,
        HeterogeneousTokenFlatten(history_length if position_embedding else 0, name="flatten"),
        transformer,
        embedding_dim=embedding_dim,
        dropout=dropout,
        normalize=normalize,
        residual=residual,
        name="user_encoder",
    )
    tower = HierarchicalItemTower(
        intermediate_dim or 2 * embedding_dim, residual=residual, activation=activation, name="tower"
    )
    return RetrievalModel(
        user_encoder,
        HeterRecItemEncoder(embedder, tower, normalize=normalize, name="item_encoder"),
        objective or build_objective(OBJECTIVE),
        item_table=table,
        history_length=history_length,
        embedding_dim=embedding_dim,
        tokens_per_item=embedder.num_tokens,
        request_time=request_time,
        name="heterrec",
    )


def _vector_features(schema: Schema, item_features: ItemFeatures) -> tuple[str, ...]:
    """The features whose vectors stand in for their tokens."""
    quantised = [feature for feature in chosen_features(schema, item_features) if feature.vector_dim is not None]
    missing = [feature.name for feature in quantised if not feature.keep_vectors]
    if missing or not quantised:
        rule = f"`keep_vectors: true` for {', '.join(missing)}" if missing else "a feature of vectors"
        raise ValueError(f'`ablation` "without_mfk" must have {rule} in the dataset. Received: ablation="without_mfk".')
    return tuple(feature.name for feature in quantised)
