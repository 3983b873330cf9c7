"""What models that guess hidden events share: a place for the mask, and the shell that asks for the next item by it."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.session_enhancement import SessionEnhancement
from tfrec.models.encoders import SequenceEncoder
from tfrec.models.shells import RetrievalModel, is_event


class MaskedSequenceEncoder(SequenceEncoder):
    """A `SequenceEncoder` that hides masked events behind a learned vector before anything else sees them.

    Args:
        enhancement: SessionEnhancement or None. Added to the events after they are masked. Defaults to None.

    The other arguments are those of `SequenceEncoder`.

    Input: a batch of `(B, L)` events, with `masked` `(B, L)` bool; a masked place may hold an event or nothing.
    Output: `{"state": (B, L, D)}`, zeros where there is neither an event nor a mask.
    """

    def __init__(self, *args: Any, enhancement: SessionEnhancement | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.enhancement = enhancement

    def build(self, batch_shape: Any = None) -> None:
        self.mask_vector = self.add_weight(
            name="mask_vector",
            shape=(self.embedding_dim,),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        )
        if self.enhancement is not None:
            self.enhancement.build((None, None, self.embedding_dim))
        super().build(batch_shape)

    def valid_mask(self, batch: dict[str, Tensor]) -> Tensor:
        """The places that hold an event or a mask, `(B, L)` bool."""
        return ops.logical_or(batch["item"] != 0, batch["masked"])

    def embed_events(self, batch: dict[str, Tensor], context: dict[str, Tensor], training: bool | None) -> Tensor:
        """Events without their places, `(B, L, D)`; of a masked one nothing is left but its session."""
        events = super().embed_events(batch, context, training)
        return ops.where(batch["masked"][..., None], ops.cast(self.mask_vector, events.dtype), events)

    def encode(self, x: Tensor, batch: dict[str, Tensor], context: dict[str, Tensor], training: bool | None) -> Tensor:
        """Embedded events, told what their sessions were about, through the blocks, `(B, L, D)`."""
        if self.enhancement is not None:
            x = self.enhancement(x, batch["session"], training=training)
        return super().encode(x, batch, context, training)


class PretrainingModel(RetrievalModel):
    """A `RetrievalModel` that is trained on hidden events and answers by hiding the one after the history.

    Its encoder sees all L + 1 events of a training window at once, with what the objective calls `masked`; a query's
    history is followed by one masked place, in the session of its last event, whose state is the user's.
    """

    def call(self, batch: Mapping[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        inputs = {key: value for key, value in batch.items() if is_event(key) or key.startswith("user_")}
        inputs["masked"] = batch["masked"] if "masked" in batch else ops.zeros_like(batch["item"], dtype="bool")
        if "time" in batch:
            inputs["query_time"] = batch["time"]
        return self.user_encoder(inputs, training=training)

    def encode_users(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The state of a masked place after each history, `(B, D)`; zeros for a row without events.

        Args:
            batch: dict. Events `(B, L)`, right-padded.
        """
        inputs, count = mask_after(batch)
        if "time" in inputs:
            inputs["query_time"] = inputs["time"]
        state = self.user_encoder(inputs, training=False)["state"]
        user = ops.take_along_axis(state, count[:, None, None], axis=1)[:, 0]
        return user * ops.cast(count > 0, user.dtype)[:, None]


def mask_after(batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Histories followed by one masked place, in the session and at the time of the last event.

    Returns:
        Events `(B, L + 1)` with `masked`, features of users, and the number of events `(B,)`, which is the place of the
        mask; a row without events has no mask.
    """
    valid = batch["item"] != 0
    count = ops.sum(ops.cast(valid, "int32"), axis=1)  # (B,)
    place = ops.arange(ops.shape(valid)[1] + 1, dtype="int32")
    masked = ops.logical_and(place[None, :] == count[:, None], count[:, None] > 0)  # (B, L + 1)
    inputs = {key: value for key, value in batch.items() if key.startswith("user_")}
    for key, value in batch.items():
        if is_event(key):
            inputs[key] = _with_place(value)
    for key in ("time", "session"):
        if key in inputs:
            last = ops.take_along_axis(batch[key], ops.maximum(count - 1, 0)[:, None], axis=1)
            inputs[key] = ops.where(masked, last, inputs[key])
    return {**inputs, "masked": masked}, count


def _with_place(value: Tensor) -> Tensor:
    """Events `(B, L)` or `(B, L, M)` with an empty place after the last."""
    return ops.pad(value, ((0, 0), (0, 1), *((0, 0) for _ in value.shape[2:])))


__all__ = ["MaskedSequenceEncoder", "PretrainingModel", "mask_after"]
