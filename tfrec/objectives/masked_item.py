"""Masked item prediction: hidden events of a history are guessed from all others, later ones too."""

from typing import Any, Literal

import keras
import numpy as np

from tfrec.errors import UserError
from tfrec.objectives.item_softmax import ItemSoftmax, check_choice
from tfrec.objectives.objective import NextItemObjective
from tfrec.objectives.packing import Batch, pack_targets, predictable


@keras.saving.register_keras_serializable(package="tfrec")
class MaskedItem(NextItemObjective):
    """Cross entropy of the items at masked places, `-log softmax(h_i . e / tau)[item_i]`, the mean over those places.

    Which places are masked is drawn for each batch: every event that may be a target with `mask_ratio`, every session
    as a whole with `session_ratio`; a row where none was drawn has one of its events masked. In a share `last_ratio` of
    the batches the last event alone is masked, which is what serving asks for.

    Args:
        mask_ratio: float. In 0..1. Defaults to 0.2.
        session_ratio: float. In 0..1. Defaults to 0.
        last_ratio: float. In 0..1. Defaults to 0.
        negatives: str. `full`: the whole catalogue; `uniform`: drawn from it, shared by a batch. Defaults to `full`.
        num_negatives: int. Negatives a batch of `uniform`. Defaults to 1024.
        temperature: float. Divides the scores. Defaults to 0.05.

    Input: user `{"state": (B, L + 1, D)}`, a state for every event of the window; items, a callable on ids `(N,)` that
    gives `{"vector": (N, D)}`; a prepared batch, whose `masked` `(B, L + 1)` bool the encoder was given.
    Output: the loss, and `all_masked`, the share of positions without any negative, but for `full`.

    Reference: Sun et al., 2019, arXiv:1904.06690 (BERT4Rec); HPGR, equation 3 (`session_ratio`). `last_ratio` is
    RecBole's `ft_ratio`. Differs from BERT4Rec: masked places always hold the mask, never the item or a random one.
    """

    option_names = ("mask_ratio", "session_ratio", "last_ratio", "negatives", "num_negatives", "temperature")

    def __init__(
        self,
        *,
        mask_ratio: float = 0.2,
        session_ratio: float = 0.0,
        last_ratio: float = 0.0,
        negatives: Literal["full", "uniform"] = "full",
        num_negatives: int = 1024,
        temperature: float = 0.05,
        **kwargs: Any,
    ) -> None:
        for argument, value in (
            ("mask_ratio", mask_ratio),
            ("session_ratio", session_ratio),
            ("last_ratio", last_ratio),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"`{argument}` must be in 0..1. Received: {argument}={value!r}.")
        check_choice("negatives", negatives, ("full", "uniform"))
        softmax = ItemSoftmax(negatives, num_negatives=num_negatives, temperature=temperature, mask_own=False)
        super().__init__(softmax, **kwargs)
        self.mask_ratio = mask_ratio
        self.session_ratio = session_ratio
        self.last_ratio = last_ratio
        self.negatives = negatives
        self.num_negatives = num_negatives
        self.temperature = temperature

    def prepare(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Adds `masked`, packed positions, targets and negatives (host side, NumPy).

        Raises:
            UserError: sessions are to be masked and the batch has none.
        """
        target = predictable(batch)
        masked = self._draw(target > 0, batch, rng)
        packed = pack_targets(np.where(masked, target, 0)[..., None])
        return {**batch, "masked": masked, **self._softmax.prepare(batch, packed, rng)}

    def _draw(self, allowed: np.ndarray, batch: Batch, rng: np.random.Generator) -> np.ndarray:
        width = allowed.shape[1]
        last = allowed & (np.arange(width) == (width - 1 - allowed[:, ::-1].argmax(axis=1))[:, None])
        if self.last_ratio and rng.random() < self.last_ratio:
            return last
        masked = allowed & (rng.random(allowed.shape) < self.mask_ratio)
        if self.session_ratio:
            if "session" not in batch:
                raise UserError("`objective.session_ratio`: must be 0, since the log has no sessions.")
            session = np.clip(batch["session"], 0, width)  # counted from 1 in the window
            chosen = rng.random((len(session), width + 1)) < self.session_ratio
            masked |= allowed & np.take_along_axis(chosen, session, axis=1)
        drawn = np.where(allowed, rng.random(allowed.shape), -1.0)
        one = allowed & (np.arange(width) == drawn.argmax(axis=1)[:, None])
        return np.where(masked.any(axis=1, keepdims=True), masked, one)


__all__ = ["MaskedItem"]
