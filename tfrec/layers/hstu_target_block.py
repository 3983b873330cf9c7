"""HSTU's block for ranking: one history, and candidates that see it but not each other."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.pointwise_attention import gather_places, own_attention, pointwise_attention
from tfrec.layers.transformer_block import causal_mask


class HSTUTargetBlock(keras.layers.Layer):
    """The block of HSTU's ranking code (STULayer), with its target-aware mask.

    U, V, Q, K = SiLU(LN(x) W + b); A = SiLU(alpha Q K^T + P) / N; n = norm(A V); y = x + Dropout([U, n, U * n]) W_o.
    An event sees itself and the events before it; a candidate sees what `visible` says of the history, and itself.
    Norms have parameters (epsilon 1e-6), W a bias, W_o none, and N is a constant.

    Args:
        num_heads: int. Heads.
        key_dim: int. Width of Q and K of a head.
        value_dim: int. Width of U and V of a head.
        max_length: int. N.
        alpha: float or None. Scale of the products; None = 1 / sqrt(key_dim). Defaults to None.
        group_norm: bool. Whether `norm` is over each head, with a scale and an offset a head, instead of over all of
            them. Defaults to False.
        dropout: float. Of what W_o is given. Defaults to 0.

    Input: history `(B, L, D)`; candidate `(B, C, D)`; valid_mask `(B, L)` bool, True = real; visible `(B, C, L)`, bool
    or a weight that multiplies A; weight `(B, L)` or None, multiplied into the columns of A in the rows of events;
    history_bias `(B or 1, 1, L, L)` and candidate_bias `(B, 1, C, L)` or None: P; own_bias: P of a candidate to itself;
    selected `(B, C, P)` int or None: the places that candidates attend to. With `selected`, `visible` is `(B, C, P)`
    and `candidate_bias` `(B * C, 1, 1, P)`.
    Output: dict with `history` `(B, L, D)`, zeros where not valid, and `candidate` `(B, C, D)`.

    Reference: Zhai et al., 2024, arXiv:2402.17152, and its public code (modules/stu.py).
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        max_length: int,
        *,
        alpha: float | None = None,
        group_norm: bool = False,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_length < 1:
            raise ValueError(f"`max_length` must be at least 1. Received: max_length={max_length}.")
        if alpha is not None and alpha <= 0:
            raise ValueError(f"`alpha` must be positive. Received: alpha={alpha}.")
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.max_length = max_length
        self.alpha = alpha
        self.group_norm = group_norm
        self.dropout = dropout

    def build(self, history_shape: Any, candidate_shape: Any = None) -> None:
        width, values = history_shape[-1], self.num_heads * self.value_dim
        total = 2 * values + 2 * self.num_heads * self.key_dim
        self.uvqk_kernel = self.add_weight(name="uvqk_kernel", shape=(width, total), initializer="glorot_uniform")
        self.uvqk_bias = self.add_weight(name="uvqk_bias", shape=(total,), initializer="zeros")
        self.input_norm = self._norm("input_norm", width)
        if self.group_norm:
            self.value_norm = self._norm("value_norm", self.value_dim, affine=False)
            self.value_scale = self.add_weight(name="value_scale", shape=(self.num_heads, 1), initializer="ones")
            self.value_offset = self.add_weight(name="value_offset", shape=(self.num_heads, 1), initializer="zeros")
        else:
            self.value_norm = self._norm("value_norm", values)
        self.output_dropout = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy, name="output_dropout")
        self.output_dense = keras.layers.Dense(width, use_bias=False, dtype=self.dtype_policy, name="output_dense")
        self.output_dense.build((None, 3 * values))
        self.built = True

    def call(
        self,
        history: Tensor,
        candidate: Tensor,
        valid_mask: Tensor,
        visible: Tensor,
        weight: Tensor | None = None,
        history_bias: Tensor | None = None,
        candidate_bias: Tensor | None = None,
        own_bias: Tensor | float = 0.0,
        selected: Tensor | None = None,
        training: bool | None = None,
    ) -> dict[str, Tensor]:
        options: dict[str, Any] = {
            "num_heads": self.num_heads,
            "length": self.max_length,
            "scale": self.key_dim**-0.5 if self.alpha is None else self.alpha,
        }
        u, v, q, k = self._project(history)
        own_u, own_v, own_q, own_k = self._project(candidate)

        # Events attend to the past; a weight of columns is one of values
        weighed = v if weight is None else v * ops.cast(weight, v.dtype)[..., None]
        past = causal_mask(valid_mask)[:, 0]  # (B, L, L)
        mixed = pointwise_attention(q, k, weighed, past, bias=history_bias, **options)

        # Candidates attend to the history, or to places of it, and to themselves
        if selected is None:
            seen = pointwise_attention(own_q, k, v, visible, bias=candidate_bias, **options)
        else:
            alone = (-1, 1, own_q.shape[-1])
            near_k, near_v = gather_places(k, selected), gather_places(v, selected)  # (B * C, P, H * d)
            visible = ops.reshape(visible, (-1, 1, ops.shape(selected)[2]))
            seen = pointwise_attention(
                ops.reshape(own_q, alone), near_k, near_v, visible, bias=candidate_bias, **options
            )
            seen = ops.reshape(seen, ops.shape(own_v))
        seen = seen + own_attention(own_q, own_k, own_v, bias=own_bias, **options)

        state = self._finish(history, u, mixed, training)
        return {
            "history": state * ops.cast(valid_mask, state.dtype)[..., None],
            "candidate": self._finish(candidate, own_u, seen, training),
        }

    def _project(self, x: Tensor) -> list[Tensor]:
        """U, V, Q, K, the order of the public code."""
        values, keys = self.num_heads * self.value_dim, self.num_heads * self.key_dim
        projected = ops.silu(ops.matmul(self.input_norm(x), self.uvqk_kernel) + self.uvqk_bias)
        return ops.split(projected, [values, 2 * values, 2 * values + keys], axis=-1)

    def _finish(self, x: Tensor, u: Tensor, mixed: Tensor, training: bool | None) -> Tensor:
        if self.group_norm:
            per_head = ops.reshape(mixed, (-1, ops.shape(mixed)[1], self.num_heads, self.value_dim))
            per_head = self.value_norm(per_head) * self.value_scale + self.value_offset
            normed = ops.reshape(per_head, ops.shape(mixed))
        else:
            normed = self.value_norm(mixed)
        gated = ops.concatenate([u, normed, u * normed], axis=-1)
        return self.output_dense(self.output_dropout(gated, training=training)) + x

    def _norm(self, name: str, width: int, *, affine: bool = True) -> keras.layers.LayerNormalization:
        norm = keras.layers.LayerNormalization(
            epsilon=1e-6, center=affine, scale=affine, dtype=self.dtype_policy, name=name
        )
        norm.build((None, width))
        return norm

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "max_length": self.max_length,
            "alpha": self.alpha,
            "group_norm": self.group_norm,
            "dropout": self.dropout,
        }
