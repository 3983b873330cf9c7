"""HPGR's second stage: a ranking model that inherits items and sessions, and attends where its user's tastes are."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tfrec.layers.preference_guided_sparse_attention import PreferenceGuidedSparseAttention
from tfrec.layers.session_enhancement import SessionEnhancement
from tfrec.models.encoders import ItemEmbedder, ItemFeatures
from tfrec.models.shells import RankingModel
from tfrec.models.target_aware import PositionKind, PreferenceGuide, target_aware_model
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "binary_crossentropy"}


def hpgr(
    schema: Schema,
    *,
    labels: tuple[str, ...],
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_blocks: Annotated[int, Field(ge=0)] = 2,
    num_heads: Annotated[int, Field(ge=1)] = 2,
    key_dim: Annotated[int, Field(ge=1)] | None = None,
    value_dim: Annotated[int, Field(ge=1)] | None = None,
    alpha: Annotated[float, Field(gt=0)] | None = None,
    group_norm: bool = False,
    hidden_units: tuple[Annotated[int, Field(ge=1)], ...] = (64,),
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    position: PositionKind = "time_aware",
    time_embedding: bool | None = None,
    relative_bias: bool = True,
    preference_attention: bool = True,
    num_anchors: Annotated[int, Field(ge=1)] = 3,
    sigma: Annotated[float, Field(gt=0)] = 1.0,
    cut: Annotated[float, Field(gt=0)] | None = 3.0,
    similarity: Literal["dot", "cosine"] = "dot",
    combine: Literal["max", "sum"] = "max",
    scope: Literal["candidate", "all"] = "candidate",
    sparse: bool = False,
    preference_embeddings: Literal["frozen", "live"] = "frozen",
    session_enhancement: bool = True,
    session_pooling: Literal["cls", "mean"] = "cls",
    session_causal: bool = False,
    num_intra_blocks: Annotated[int, Field(ge=0)] = 1,
    num_inter_blocks: Annotated[int, Field(ge=0)] = 1,
    intermediate_dim: Annotated[int, Field(ge=1)] | None = None,
    num_positions: Annotated[int, Field(ge=0)] = 20,
    item_features: ItemFeatures = "all",
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: bool = True,
    event_types: bool = True,
) -> RankingModel:
    """HPGR's preference-aware fine-tuning: `hstu_ranking` with time-aware places, PGSA and SEM.

    E' = E + g of `SessionEnhancement`; places by equation 4; blocks of `HSTUTargetBlock` whose attention is multiplied
    by the mask of `PreferenceGuidedSparseAttention`; layer norm; an MLP and a logit a label. The item embeddings and
    SEM start from a run of `hpgr_pretrain` (`training.initialize_from`) with the same `embedding_dim`,
    `history_length`, `num_heads`, `item_features` and options of sessions; frozen PGSA embeddings are a copy of what
    they start from.

    The paper's rows: base `preference_attention: false, session_enhancement: false, position: shared`; + PGSA
    `session_enhancement: false`; + SEM `preference_attention: false`; full, the defaults.

    Args:
        schema: Schema. Of the dataset.
        labels: names. That are predicted.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most, and the constant N that attention is divided by.
        embedding_dim: int. Width D.
        num_blocks: int. Blocks.
        num_heads: int. Attention heads, of SEM too.
        key_dim: int or None. Width of Q and K of a head; None = `embedding_dim` / `num_heads`.
        value_dim: int or None. Width of U and V of a head; None = `embedding_dim` / `num_heads`.
        alpha: float or None. Scale of the products; None = 1 / sqrt(key_dim).
        group_norm: bool. Whether attention's output is normed head by head.
        hidden_units: ints. Of the head's MLP.
        dropout: float. Of the blocks' input and of their gated outputs, and of SEM.
        position: str. `"time_aware"`: equation 4; `"shared"` and `"backward"`: see `hstu_ranking`.
        time_embedding: bool or None. Whether times are embedded; None = where the log has times.
        relative_bias: bool. Whether distances and time gaps bias attention.
        preference_attention: bool. Whether there is a PGSA.
        num_anchors: int. K; PGSA sees K (2 ceil(cut sigma) + 1) places at most. To save time these must be a small part
            of the history; of short histories (50 events) masks that see half of the places rank worse than wide ones.
        sigma: float. Width of the Gaussians, in places.
        cut: float or None. In sigmas; None = nothing is cut.
        similarity: str. `"dot"` or `"cosine"`.
        combine: str. Of several anchors: `"max"` or `"sum"`, at most 1.
        scope: str. `"candidate"`: the mask guides the candidate's own attention; `"all"`: that of its history too,
            which is then encoded for each candidate by itself.
        sparse: bool. Whether attention is computed at the places alone that the cut leaves, which pays where these are
            few of many.
        preference_embeddings: str. What PGSA compares by: `"frozen"`, the inherited embeddings; `"live"`, the model's.
        session_enhancement: bool. Whether there is a SEM.
        session_pooling: str. How SEM makes one vector of sessions: `"cls"` or `"mean"`.
        session_causal: bool. Whether SEM tells each event of the past alone, so that candidates of one row may stand
            anywhere in its history.
        num_intra_blocks: int. Blocks of SEM inside sessions.
        num_inter_blocks: int. Blocks of SEM over sessions.
        intermediate_dim: int or None. Width inside SEM's feed-forward networks; None = 4 `embedding_dim`.
        num_positions: int. Places of impressions that have a bias, where the log has places; 0 = none.
        item_features: `"all"` or names. Features whose embeddings are summed to an item's.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: bool. Whether features of users are added to candidates.
        event_types: bool. Whether the type of an event is added to it.

    Outputs: `{label: (B, C)}` logits; in training `preference_mask`, the mean of the mask over the events before
    candidates. Near 1 PGSA leaves everything as it is.

    Raises:
        ValueError: the log has no sessions; the sparse path without a cut.

    Reference: HPGR, section 3.2, equations 4 to 6. Differs from the paper, which leaves open sizes, K, sigma and the
    cut: the candidate stands behind the events before it by (time, order), ties included; the events after it, which
    would move on by one place, are masked; one bias of places and times serves all blocks; SEM adds its context to
    events, not to candidates; features of users are added to candidates.
    """
    if session_enhancement and not schema.has_sessions:
        raise ValueError("`session_enhancement` must be false: the log has no sessions (`data.sessions`).")
    if sparse and cut is None:
        raise ValueError("`cut` must be a number where `sparse` is true. Received: cut=None.")

    enhancement = None
    if session_enhancement:
        enhancement = SessionEnhancement(
            num_heads,
            intermediate_dim or 4 * embedding_dim,
            history_length + 1,
            num_intra_blocks=num_intra_blocks,
            num_inter_blocks=num_inter_blocks,
            pooling=session_pooling,
            causal=session_causal,
            dropout=dropout,
            name="session_enhancement",
        )

    def make_guide(embedder: ItemEmbedder) -> PreferenceGuide:
        frozen = preference_embeddings == "frozen"
        if frozen:
            embedder = ItemEmbedder(
                schema, embedder.table, embedding_dim, item_features=item_features, name="frozen_embedder"
            )
        attention = PreferenceGuidedSparseAttention(
            num_anchors, sigma, similarity=similarity, combine=combine, cut=cut, name="attention"
        )
        return PreferenceGuide(attention, embedder, frozen=frozen, whole=scope == "all", sparse=sparse, name="guide")

    return target_aware_model(
        "hpgr",
        schema,
        labels,
        objective or build_objective(OBJECTIVE),
        history_length=history_length,
        embedding_dim=embedding_dim,
        num_blocks=num_blocks,
        num_heads=num_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        alpha=alpha,
        group_norm=group_norm,
        hidden_units=hidden_units,
        dropout=dropout,
        position=position,
        time_embedding=time_embedding,
        relative_bias=relative_bias,
        num_positions=num_positions,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        user_features=user_features,
        event_types=event_types,
        enhancement=enhancement,
        make_guide=make_guide if preference_attention else None,
    )
