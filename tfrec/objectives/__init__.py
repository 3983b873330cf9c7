"""Objectives: layers that turn what a model gives into a loss.

Those of retrieval models have `set_counts(target_count)`, told once by the model; `prepare(batch, rng)`, NumPy on the
host, which packs positions and draws negatives; `call(user, items=, batch=) -> (loss, metrics)` on the device; and
`metric_names`. `binary_crossentropy`, of ranking models, is called with logits of candidates and has no counts.
Softmaxes are in float32 whatever the model's precision.
"""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from tfrec.config import suggest
from tfrec.errors import UsageError

OBJECTIVES = {
    "binary_crossentropy": "tfrec.objectives.binary_crossentropy:BinaryCrossentropy",
    "dense_all_action": "tfrec.objectives.dense_all_action:DenseAllAction",
    "full_softmax": "tfrec.objectives.full_softmax:FullSoftmax",
    "in_batch_softmax": "tfrec.objectives.in_batch_softmax:InBatchSoftmax",
    "listwise_multi_step": "tfrec.objectives.listwise_multi_step:ListwiseMultiStep",
    "masked_item": "tfrec.objectives.masked_item:MaskedItem",
    "multi_step": "tfrec.objectives.multi_step:MultiStep",
    "retrieval": "tfrec.models.two_tower:Retrieval",
    "sampled_softmax": "tfrec.objectives.sampled_softmax:SampledSoftmax",
}


def build_objective(objective: Mapping[str, Any] | None, default: Mapping[str, Any] | None = None) -> Any:
    """The layer that a config's `objective:` section asks for.

    Args:
        objective: `name` (of `OBJECTIVES`, or module:function) and its keyword arguments; None = `default`.
        default: the model's own objective in the same form. Where `objective` has no name, it changes options of this.

    Raises:
        UsageError: unknown name or option, with the nearest known one; an option's value that the objective refuses.
    """
    section = dict(default or {}) if objective is None else dict(objective)
    if "name" not in section:
        section = {**(default or {}), **section}
    name = section.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(f"`objective.name`: must be given; {suggest('', list(OBJECTIVES))}")
    factory = _resolve(name)
    options = [key for key in inspect.signature(factory).parameters if key not in ("kwargs", "dtype")]
    for key in section:
        if key not in options:
            raise UsageError(f"`objective.{key}`: unknown option of {name}; {suggest(key, options)}")
    try:
        return factory(**section)
    except (TypeError, ValueError) as error:
        raise UsageError(f"`objective`: {name}: {error}") from None


def _resolve(name: str) -> Any:
    target = OBJECTIVES.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        raise UsageError(f"`objective.name`: unknown objective {name!r}; {suggest(name, list(OBJECTIVES))}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"`objective.name`: {name} cannot be imported ({error}).") from None


__all__ = ["OBJECTIVES", "build_objective"]
