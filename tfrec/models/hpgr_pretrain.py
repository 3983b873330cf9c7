"""HPGR's first stage: items are learnt from histories that know their sessions."""

from typing import Annotated, Any, Literal

import keras
from pydantic import Field

from tfrec.layers.session_enhancement import SessionEnhancement
from tfrec.layers.transformer_block import TransformerBlock
from tfrec.models.encoders import ITEM_ID, ItemFeatures, UserFeatures
from tfrec.models.masked import MaskedSequenceEncoder, PretrainingModel
from tfrec.models.sequence import sequence_model
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "masked_item", "mask_ratio": 0.2, "session_ratio": 0.1}


def hpgr_pretrain(
    schema: Schema,
    *,
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_blocks: Annotated[int, Field(ge=0)] = 2,
    num_intra_blocks: Annotated[int, Field(ge=0)] = 1,
    num_inter_blocks: Annotated[int, Field(ge=0)] = 1,
    num_heads: Annotated[int, Field(ge=1)] = 2,
    intermediate_dim: Annotated[int, Field(ge=1)] | None = None,
    activation: str = "gelu",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    session_enhancement: bool = True,
    session_pooling: Literal["cls", "mean"] = "cls",
    session_causal: bool = False,
    position_embedding: bool = True,
    normalize: bool = True,
    item_features: ItemFeatures = (ITEM_ID,),
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: UserFeatures = "none",
    event_types: bool = True,
    request_time: bool = False,
) -> PretrainingModel:
    """HPGR's structure-aware pre-training: events are masked, sessions enhance them, a transformer guesses the masked.

    E = embeddings with masks in their places; E' = E + g of `SessionEnhancement`; h = bidirectional transformer over
    sqrt(D) E' + positions; softmax over the catalogue of h at masked places. Masking comes first, so that a masked
    event is visible nowhere. The item embeddings and SEM are what later stages take over.

    Args:
        schema: Schema. Of the dataset.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D.
        num_blocks: int. Blocks of the encoder that is thrown away after this stage.
        num_intra_blocks: int. Blocks of SEM inside sessions.
        num_inter_blocks: int. Blocks of SEM over sessions.
        num_heads: int. Attention heads everywhere; must divide `embedding_dim`.
        intermediate_dim: int or None. Width inside the feed-forward networks; None = 4 `embedding_dim`.
        activation: str. Of the encoder's feed-forward network.
        dropout: float. Of inputs, attention probabilities and sublayers.
        session_enhancement: bool. Whether there is a SEM; without it this is plain masked item modelling.
        session_pooling: str. How SEM makes one vector of sessions: `"cls"` or `"mean"`.
        session_causal: bool. Whether SEM tells each event of the past alone, for a second stage whose candidates stand
            inside their histories.
        position_embedding: bool. Whether places have embeddings.
        normalize: bool. Cosine similarity instead of the dot product.
        item_features: `"all"` or names. Features whose embeddings are summed to an item's.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: str. `"prefix"`, `"add"` or `"none"`.
        event_types: bool. Whether the type of an event is added to it.
        request_time: bool. Set by the run; this model reads no times.

    Outputs: `{"state": (B, L + 1, D)}`, `{"vector": (N, D)}`.

    Raises:
        ValueError: the log has no sessions.

    Reference: HPGR, section 3.1, equations 1 to 3. Differs from the paper, which leaves open sizes, shares and the
    kind of encoder: cosine similarity at a temperature, as for the other models; as a retrieval model of its own it
    answers for a masked place in the session of the last event.
    """
    if session_enhancement and not schema.has_sessions:
        raise ValueError("`session_enhancement` must be false: the log has no sessions (`data.sessions`).")
    width = intermediate_dim or 4 * embedding_dim

    def make_blocks(length: int) -> list[keras.layers.Layer]:
        return [
            TransformerBlock(
                num_heads,
                width,
                causal=False,
                activation=activation,
                dropout=dropout,
                attention_dropout=dropout,
                name=f"block_{index}",
            )
            for index in range(num_blocks)
        ]

    enhancement = None
    if session_enhancement:
        enhancement = SessionEnhancement(
            num_heads,
            width,
            history_length + 1,
            num_intra_blocks=num_intra_blocks,
            num_inter_blocks=num_inter_blocks,
            pooling=session_pooling,
            causal=session_causal,
            dropout=dropout,
            name="session_enhancement",
        )

    return sequence_model(
        "hpgr_pretrain",
        schema,
        make_blocks,
        objective or build_objective(OBJECTIVE),
        history_length=history_length,
        embedding_dim=embedding_dim,
        time_bias=False,
        position_embedding=position_embedding,
        dropout=dropout,
        normalize=normalize,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        user_features=user_features,
        event_types=event_types,
        request_time=request_time,
        encoder=MaskedSequenceEncoder,
        shell=PretrainingModel,
        extra_places=1,
        enhancement=enhancement,
    )
