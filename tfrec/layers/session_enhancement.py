"""SEM: sessions summarised by one transformer, related by another, told to every event."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.transformer_block import TransformerBlock

_SMALL = 0.1
"""What contexts are multiplied by at first: they are of length sqrt(D), and fresh events are shorter."""


class SessionEnhancement(keras.layers.Layer):
    """HPGR's session enhancement module: every event learns what the user's sessions were about.

    s_k = Intra([CLS]; events of session k)[CLS]; g = Inter([CLS]; s_1, ..., s_m)[CLS], or the mean of Inter(s_1, ...,
    s_m); output = x + a * g at every event, a learned for each of the D numbers. Both transformers are bidirectional,
    so an output sees the whole history: where a later event must not be seen, give the history up to there, or use
    `causal`.

    With `causal` the output at t knows events up to t alone: the intra-session transformer is causal, a closed session
    is its state at the session's last event, the running one its state at t, and the inter-session transformer lets t
    see itself and the closed sessions before its own; g_t is its output at t, without [CLS].

    Args:
        num_heads: int. Heads of every block.
        intermediate_dim: int. Width inside the feed-forward networks.
        max_length: int. Events of a history at most.
        num_intra_blocks: int. Blocks inside sessions. Defaults to 1.
        num_inter_blocks: int. Blocks over sessions. Defaults to 1.
        pooling: str. `"cls"` or `"mean"`: how sessions become g; `causal` has no use for it. Defaults to `"cls"`.
        causal: bool. See above. Defaults to False.
        dropout: float. See `TransformerBlock`. Defaults to 0.

    Input: x `(B, L, D)`; session `(B, L)` int, numbered from 1 in order, 0 = padding. A log's own sessions may
    interleave and leave gaps in a window's numbers; numbers above L, which only that brings about, have no summary.
    Output: `(B, L, D)`; zeros at padding.

    Reference: HPGR, equations 1 and 2.
    Differs from the paper, which has no a: it starts small because g, a layer-normed vector, would otherwise drown what
    tells one event from another. The paper is silent on how order enters: events have a learned embedding of their
    place in the session, sessions one of their distance from the last session (with `causal`, from the first).
    Attention inside sessions is masked attention over the whole history: memory is that of two histories.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        max_length: int,
        *,
        num_intra_blocks: int = 1,
        num_inter_blocks: int = 1,
        pooling: str = "cls",
        causal: bool = False,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if pooling not in ("cls", "mean"):
            raise ValueError(f'`pooling` must be "cls" or "mean". Received: pooling={pooling!r}.')
        if max_length < 1:
            raise ValueError(f"`max_length` must be at least 1. Received: max_length={max_length}.")
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.max_length = max_length
        self.num_intra_blocks = num_intra_blocks
        self.num_inter_blocks = num_inter_blocks
        self.pooling = pooling
        self.causal = causal
        self.dropout = dropout

    def build(self, x_shape: Any) -> None:
        width = x_shape[-1]
        normal = keras.initializers.TruncatedNormal(stddev=0.02)
        places = keras.initializers.TruncatedNormal(stddev=width**-0.5)
        self.context_scale = self.add_weight(
            name="context_scale", shape=(width,), initializer=keras.initializers.Constant(_SMALL)
        )
        self.place_in_session = self.add_weight(
            name="place_in_session", shape=(self.max_length, width), initializer=places.clone()
        )
        self.session_place = self.add_weight(
            name="session_place", shape=(self.max_length, width), initializer=places.clone()
        )
        self.intra_cls = self.inter_cls = None
        if not self.causal:
            self.intra_cls = self.add_weight(name="intra_cls", shape=(width,), initializer=normal.clone())
            if self.pooling == "cls":
                self.inter_cls = self.add_weight(name="inter_cls", shape=(width,), initializer=normal.clone())
        self.intra_blocks = [self._block(f"intra_block_{index}", width) for index in range(self.num_intra_blocks)]
        self.inter_blocks = [self._block(f"inter_block_{index}", width) for index in range(self.num_inter_blocks)]
        self.built = True

    def call(self, x: Tensor, session: Tensor, training: bool | None = None) -> Tensor:
        session = ops.cast(session, "int32")
        valid_mask = session != 0
        length = ops.shape(x)[1]
        order = ops.arange(length, dtype="int32")
        earlier = order[None, :] < order[:, None]  # (L, L): key before query
        together = ops.logical_and(session[:, :, None] == session[:, None, :], valid_mask[:, None, :])  # (B, L, L)
        place = ops.sum(ops.cast(ops.logical_and(together, earlier), "int32"), axis=2)  # in the session, from 0
        events = x + ops.take(self.place_in_session, place, axis=0)
        if self.causal:
            context = self._running(events, session, together, earlier, training)
        else:
            context = self._whole(events, session, together, training)
        return (x + self.context_scale * context) * ops.cast(valid_mask, x.dtype)[..., None]

    def _whole(self, events: Tensor, session: Tensor, together: Tensor, training: bool | None) -> Tensor:
        """G `(B, 1, D)`. Slot k of the L slots before the events is the [CLS] of session k + 1."""
        valid_mask = session != 0
        length = ops.shape(events)[1]
        slot = ops.arange(1, length + 1, dtype="int32")
        member = slot[None, :, None] == session[:, None, :]  # (B, slots, L)
        used = ops.any(member, axis=2)  # (B, slots)
        itself = ops.logical_and(ops.eye(length, dtype="bool"), used[:, None, :])
        visible = ops.concatenate(
            [
                ops.concatenate([itself, member], axis=2),
                ops.concatenate([ops.swapaxes(member, 1, 2), together], axis=2),
            ],
            axis=1,
        )  # (B, 2 L, 2 L)
        cls = ops.zeros_like(events) + ops.cast(self.intra_cls, events.dtype)
        hidden = ops.concatenate([cls, events], axis=1)
        mask = ops.concatenate([used, valid_mask], axis=1)
        for block in self.intra_blocks:
            hidden = block(hidden, mask, visible=visible, training=training)
        summary = hidden[:, :length]  # (B, slots, D)

        last = ops.max(session, axis=1)
        distance = ops.clip(last[:, None] - slot[None, :], 0, self.max_length - 1)
        summary = (summary + ops.take(self.session_place, distance, axis=0)) * ops.cast(used, summary.dtype)[..., None]
        if self.inter_cls is not None:
            first = ops.zeros_like(summary[:, :1]) + ops.cast(self.inter_cls, summary.dtype)
            summary = ops.concatenate([first, summary], axis=1)
            used = ops.concatenate([ops.ones_like(used[:, :1]), used], axis=1)
        for block in self.inter_blocks:
            summary = block(summary, used, training=training)
        if self.inter_cls is not None:
            return summary[:, :1]
        weight = ops.cast(used, summary.dtype)[..., None]
        return ops.sum(summary * weight, axis=1, keepdims=True) / ops.maximum(
            ops.sum(weight, axis=1, keepdims=True), 1.0
        )

    def _running(
        self, events: Tensor, session: Tensor, together: Tensor, earlier: Tensor, training: bool | None
    ) -> Tensor:
        """G `(B, L, D)`, of which row t knows events up to t."""
        valid_mask = session != 0
        itself = ops.eye(ops.shape(events)[1], dtype="bool")
        past = ops.logical_and(together, ops.logical_or(earlier, itself))
        hidden = events
        for block in self.intra_blocks:
            hidden = block(hidden, valid_mask, visible=past, training=training)
        following = ops.concatenate([session[:, 1:], ops.zeros_like(session[:, :1])], axis=1)
        closed = ops.logical_and(session != following, valid_mask)  # the last event of each session
        before = ops.logical_and(session[:, None, :] < session[:, :, None], closed[:, None, :])
        visible = ops.logical_or(before, ops.logical_and(itself, valid_mask[:, None, :]))
        state = hidden + ops.take(self.session_place, ops.clip(session - 1, 0, self.max_length - 1), axis=0)
        for block in self.inter_blocks:
            state = block(state, valid_mask, visible=visible, training=training)
        return state

    def _block(self, name: str, width: int) -> TransformerBlock:
        block = TransformerBlock(
            self.num_heads,
            self.intermediate_dim,
            causal=False,
            dropout=self.dropout,
            dtype=self.dtype_policy,
            name=name,
        )
        block.build((None, None, width))
        return block

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "max_length": self.max_length,
            "num_intra_blocks": self.num_intra_blocks,
            "num_inter_blocks": self.num_inter_blocks,
            "pooling": self.pooling,
            "causal": self.causal,
            "dropout": self.dropout,
        }
