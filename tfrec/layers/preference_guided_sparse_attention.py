"""PGSA: what of a history a candidate may attend to, as a soft mask or as the few places that it leaves."""

import math
from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor

_NO_ANCHOR = 1e9
"""Distance from an anchor that does not exist."""


class PreferenceGuidedSparseAttention(keras.layers.Layer):
    """HPGR's guide of attention: Gaussians around the K events that are most like the candidate.

    r_j = <e_c, e_j>; A = the K valid places with the largest r (the earlier one where two are equal); m_j = max over a
    in A of exp(-(j - a)^2 / (2 sigma^2)), multiplied into the attention weights of place j. Anchors pass no gradient.

    With `cut` m_j is 0 further than `radius` = ceil(cut * sigma) places from every anchor, so that at most
    `max_places` = K * (2 * radius + 1) places matter: `select` gives them, and attention over them alone equals dense
    attention under the mask.

    Args:
        num_anchors: int. K.
        sigma: float. Width of the Gaussians, in places.
        similarity: str. `"dot"`, or `"cosine"` where the norms of embeddings are skewed. Defaults to `"dot"`.
        combine: str. `"max"` over anchors, or `"sum"`, at most 1. Defaults to `"max"`.
        cut: float or None. In sigmas; None = nothing is cut, and there is no `select`. Defaults to 3.

    Input: candidate `(B, C, D)`, history `(B, L, D)`; valid_mask `(B, C, L)` bool, the places before each candidate.
    Output: m `(B, C, L)` in the compute dtype; zeros where not valid.

    Reference: HPGR, section 3.2.2, equation 5. The paper gives neither K nor sigma nor the cut.
    """

    def __init__(
        self,
        num_anchors: int,
        sigma: float,
        *,
        similarity: str = "dot",
        combine: str = "max",
        cut: float | None = 3.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_anchors < 1:
            raise ValueError(f"`num_anchors` must be at least 1. Received: num_anchors={num_anchors}.")
        for argument, value in (("sigma", sigma), ("cut", cut)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{argument}` must be a positive number. Received: {argument}={value}.")
        if similarity not in ("dot", "cosine"):
            raise ValueError(f'`similarity` must be "dot" or "cosine". Received: similarity={similarity!r}.')
        if combine not in ("max", "sum"):
            raise ValueError(f'`combine` must be "max" or "sum". Received: combine={combine!r}.')
        self.num_anchors = num_anchors
        self.sigma = sigma
        self.similarity = similarity
        self.combine = combine
        self.cut = cut

    @property
    def radius(self) -> int:
        """Places on either side of an anchor that are not cut."""
        if self.cut is None:
            raise ValueError("`cut` must be a number where places are selected. Received: cut=None.")
        return math.ceil(self.cut * self.sigma)

    @property
    def max_places(self) -> int:
        """P, the places that are left of a history at most, however long."""
        return self.num_anchors * (2 * self.radius + 1)

    def build(self, candidate_shape: Any = None, history_shape: Any = None) -> None:
        """Has no weights."""
        self.built = True

    def call(self, candidate: Tensor, history: Tensor, valid_mask: Tensor) -> Tensor:
        anchor, exists = self._anchors(candidate, history, valid_mask)
        place = ops.arange(ops.shape(history)[1], dtype="int32")
        weight = self._weight(place[None, None], anchor, exists)
        return ops.cast(weight, self.compute_dtype) * ops.cast(valid_mask, self.compute_dtype)

    def select(self, candidate: Tensor, history: Tensor, valid_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The places that the cut leaves, in order, and their m.

        Returns:
            Places `(B, C, P)` int32 below L, and m `(B, C, P)`, 0 where there is no such place: two anchors are close,
            one stands at an end, or there are fewer than K valid places.
        """
        length = ops.shape(history)[1]
        anchor, exists = self._anchors(candidate, history, valid_mask)
        offset = ops.arange(-self.radius, self.radius + 1, dtype="int32")
        around = anchor[..., None] + offset  # (B, C, K, 2 R + 1)
        inside = ops.logical_and(ops.logical_and(around >= 0, around < length), exists[..., None])
        around = ops.where(inside, around, length)
        place = ops.sort(ops.reshape(around, (-1, ops.shape(anchor)[1], self.max_places)), axis=-1)
        before = ops.concatenate([ops.full_like(place[..., :1], -1), place[..., :-1]], axis=-1)
        real = ops.logical_and(place < length, place != before)
        place = ops.minimum(place, length - 1)
        valid = ops.logical_and(real, ops.take_along_axis(valid_mask, place, axis=2))
        weight = self._weight(place, anchor, exists)
        return place, ops.cast(weight, self.compute_dtype) * ops.cast(valid, self.compute_dtype)

    def _anchors(self, candidate: Tensor, history: Tensor, valid_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Places `(B, C, K)` int32, and whether there is such an anchor."""
        candidate, history = (ops.cast(ops.stop_gradient(x), "float32") for x in (candidate, history))
        if self.similarity == "cosine":
            candidate, history = ops.normalize(candidate, axis=-1), ops.normalize(history, axis=-1)
        likeness = ops.matmul(candidate, ops.swapaxes(history, 1, 2))  # (B, C, L)
        likeness = ops.where(valid_mask, likeness, -math.inf)
        likeness = ops.pad(likeness, ((0, 0), (0, 0), (0, self.num_anchors)), constant_values=-math.inf)
        value, anchor = ops.top_k(likeness, self.num_anchors)
        return ops.cast(anchor, "int32"), ops.isfinite(value)

    def _weight(self, place: Tensor, anchor: Tensor, exists: Tensor) -> Tensor:
        """M of places `(B or 1, C or 1, P)`, float32, `(B, C, P)`."""
        place = ops.cast(place, "float32")
        nearest, total = None, None
        for index in range(self.num_anchors):
            distance = ops.abs(place - ops.cast(anchor[..., index : index + 1], "float32"))
            distance = ops.where(exists[..., index : index + 1], distance, _NO_ANCHOR)
            nearest = distance if nearest is None else ops.minimum(nearest, distance)
            if self.combine == "sum":
                gauss = self._gauss(distance)
                total = gauss if total is None else total + gauss
        return self._gauss(nearest) if total is None else ops.minimum(total, 1.0)

    def _gauss(self, distance: Tensor) -> Tensor:
        gauss = ops.exp(-ops.square(ops.minimum(distance / self.sigma, 1e4)) / 2)
        return gauss if self.cut is None else ops.where(distance <= self.radius, gauss, 0.0)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_anchors": self.num_anchors,
            "sigma": self.sigma,
            "similarity": self.similarity,
            "combine": self.combine,
            "cut": self.cut,
        }
